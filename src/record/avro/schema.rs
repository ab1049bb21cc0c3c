//! The JSON of an Avro schema to types whose names are resolved.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::record::schema::SchemaText;

/// A writer's schema.
#[derive(Debug)]
pub struct AvroSchema {
    pub(super) root: Type,
    /// Types may contain themselves, so these stand apart.
    pub(super) named: Vec<Named>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Type {
    Null,
    Boolean,
    Int,
    /// With how many of its units are a millisecond, where it is a time.
    Long {
        per_millisecond: i64,
    },
    Float,
    Double,
    Bytes,
    /// Bytes are the digits of a number, of which so many stand behind the point.
    Decimal {
        scale: usize,
    },
    String,
    Array(Box<Type>),
    Map(Box<Type>),
    Union(Vec<Type>),
    /// By its place among the named ones.
    Named(usize),
}

#[derive(Debug)]
pub(super) enum Named {
    Record(Vec<Field>),
    Enum(Vec<String>),
    Fixed {
        bytes: usize,
        scale: Option<usize>,
    },
    /// While it is being read itself.
    Coming,
}

#[derive(Debug)]
pub(super) struct Field {
    pub name: String,
    pub of: Type,
}

impl AvroSchema {
    /// The error says where, and what is wrong.
    pub(in crate::record) fn compile(schema: &SchemaText) -> Result<Self, String> {
        let mut reader = SchemaReader { named: Vec::new(), by_name: HashMap::new() };
        let references = schema.references.iter().map(|(name, text)| (Some(name), text));
        let mut root = Type::Null;
        for (name, text) in references.chain([(None, &schema.text)]) {
            let of_reference = |e: String| match name {
                Some(name) => format!("reference `{name}`: {e}"),
                None => e,
            };
            // The name of a single type need not stand in quotes.
            let json = serde_json::from_str(text).or_else(|e| match primitive(text.trim()) {
                Some(_) => Ok(Value::from(text.trim())),
                None => Err(of_reference(e.to_string())),
            })?;
            root = reader.read(&json, "").map_err(of_reference)?;
        }
        Ok(AvroSchema { root, named: reader.named })
    }
}

struct SchemaReader {
    named: Vec<Named>,
    by_name: HashMap<String, usize>,
}

fn primitive(name: &str) -> Option<Type> {
    Some(match name {
        "null" => Type::Null,
        "boolean" => Type::Boolean,
        "int" => Type::Int,
        "long" => Type::Long { per_millisecond: 1 },
        "float" => Type::Float,
        "double" => Type::Double,
        "bytes" => Type::Bytes,
        "string" => Type::String,
        _ => return None,
    })
}

impl SchemaReader {
    /// `namespace`: of the type around it.
    fn read(&mut self, schema: &Value, namespace: &str) -> Result<Type, String> {
        match schema {
            Value::String(name) => self.by_name(name, namespace),
            Value::Array(branches) => {
                let branches: Result<Vec<_>, _> = branches.iter().map(|branch| self.read(branch, namespace)).collect();
                branches.map(Type::Union)
            }
            Value::Object(object) => self.object(object, namespace),
            other => Err(format!("`{other}` is no type")),
        }
    }

    fn by_name(&self, name: &str, namespace: &str) -> Result<Type, String> {
        if let Some(primitive) = primitive(name) {
            return Ok(primitive);
        }
        // Older writers leave the namespace out where there is none.
        let known = self.by_name.get(&full_name(name, namespace)).or_else(|| self.by_name.get(name));
        known.map(|place| Type::Named(*place)).ok_or_else(|| format!("there is no type `{name}`"))
    }

    fn object(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<Type, String> {
        let kind = match object.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            // A type in a type.
            Some(inner) => return self.read(inner, namespace),
            None => return Err(format!("no `type` in {}", Value::from(object.clone()))),
        };
        let inner = |key: &str| object.get(key).ok_or_else(|| format!("an {kind} without `{key}`"));
        let logical = object.get("logicalType").and_then(Value::as_str).unwrap_or_default();
        Ok(match kind {
            "array" => Type::Array(Box::new(self.read(inner("items")?, namespace)?)),
            "map" => Type::Map(Box::new(self.read(inner("values")?, namespace)?)),
            "record" | "error" | "enum" | "fixed" => self.named(kind, object, namespace)?,
            "long" => Type::Long {
                per_millisecond: match logical {
                    "timestamp-micros" | "local-timestamp-micros" => 1_000,
                    "timestamp-nanos" | "local-timestamp-nanos" => 1_000_000,
                    _ => 1,
                },
            },
            "bytes" => scale(object).map_or(Type::Bytes, |scale| Type::Decimal { scale }),
            other => self.by_name(other, namespace)?,
        })
    }

    fn named(&mut self, kind: &str, object: &Map<String, Value>, namespace: &str) -> Result<Type, String> {
        let name = object.get("name").and_then(Value::as_str).ok_or_else(|| format!("a {kind} without `name`"))?;
        let own = object.get("namespace").and_then(Value::as_str);
        let full_name = full_name(name, own.unwrap_or(namespace));
        let namespace = full_name.rsplit_once('.').map_or("", |(namespace, _)| namespace);
        let place = self.named.len();
        self.named.push(Named::Coming);
        if self.by_name.insert(full_name.clone(), place).is_some() {
            return Err(format!("type `{full_name}` is defined twice"));
        }
        let list = |key: &str| {
            let list = object.get(key).and_then(Value::as_array);
            list.ok_or_else(|| format!("{kind} `{full_name}` has no list `{key}`"))
        };
        self.named[place] = match kind {
            "enum" => {
                let symbol = |symbol: &Value| symbol.as_str().map(str::to_owned);
                let symbols: Option<Vec<_>> = list("symbols")?.iter().map(symbol).collect();
                Named::Enum(symbols.ok_or_else(|| format!("enum `{full_name}` has symbols that are no strings"))?)
            }
            "fixed" => {
                let size = object.get("size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
                let bytes = size.ok_or_else(|| format!("fixed `{full_name}` has no `size`"))?;
                Named::Fixed { bytes, scale: scale(object) }
            }
            _ => {
                let fields = list("fields")?.iter().map(|field| {
                    let name = field.get("name").and_then(Value::as_str);
                    let name = name.ok_or_else(|| format!("record `{full_name}` has a field without `name`"))?;
                    let of = field.get("type").ok_or_else(|| format!("field `{full_name}.{name}` has no `type`"))?;
                    let of = self.read(of, namespace).map_err(|e| format!("field `{full_name}.{name}`: {e}"))?;
                    Ok::<_, String>(Field { name: name.to_owned(), of })
                });
                let fields = fields.collect::<Result<Vec<_>, String>>()?;
                let mut names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
                names.sort_unstable();
                if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
                    return Err(format!("record `{full_name}` has two fields `{}`", twice[0]));
                }
                Named::Record(fields)
            }
        };
        Ok(Type::Named(place))
    }
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

/// Of a decimal, if it is one that can be shown as a number.
fn scale(object: &Map<String, Value>) -> Option<usize> {
    let scale = object.get("scale").map_or(Some(0), Value::as_u64)?;
    (object.get("logicalType")?.as_str()? == "decimal" && scale <= 100).then_some(scale as usize)
}
