//! One Avro datum to the fields of a document.

use std::borrow::Cow;

use super::schema::{AvroSchema, Field, Named, Type};
use crate::record::decode::{Decoder, Parsed, Scalar};
use crate::record::json::JsonBuffer;
use crate::record::{Reject, RejectReason};

/// Records in records.
const MAX_DEPTH: usize = 64;
/// Items without a byte of their own that a datum may have, beside one for each byte.
const FREE_ITEMS: usize = 1024;

impl AvroSchema {
    /// In: a whole datum. Out: its named fields, and all others as JSON.
    pub(in crate::record) fn read<'a>(
        &'a self,
        decoder: &Decoder,
        datum: &'a [u8],
        json: &'a mut JsonBuffer,
    ) -> Result<Parsed<'a>, Reject> {
        json.begin(decoder.max_bytes);
        let mut reader =
            Reader { schema: self, rest: datum, json: &mut *json, depth: 0, items_left: datum.len() + FREE_ITEMS };
        let mut root = &self.root;
        if let Type::Union(branches) = root {
            root = reader.branch(branches)?;
        }
        let fields = match root {
            Type::Named(place) => match &self.named[*place] {
                Named::Record(fields) => fields,
                _ => return Err(not_a_record()),
            },
            _ => return Err(not_a_record()),
        };
        let names = &decoder.fields;
        let is = |name: &Option<String>, field: &str| name.as_deref() == Some(field);
        let (mut parsed, mut ends) = (Parsed::default(), Vec::new());
        for Field { name, of } in fields {
            let at_field = |reject: Reject| match reject.reason {
                RejectReason::TooLarge => reject,
                reason => Reject::new(reason, format!("field `{name}`: {}", reject.detail)),
            };
            let is_time = is(&names.timestamp, name);
            let slot = match name {
                k if *k == names.text => &mut parsed.text,
                k if is(&names.id, k) => &mut parsed.id,
                k if is(&names.source, k) => &mut parsed.source,
                _ if is_time => &mut parsed.timestamp,
                k if is(&names.loss, k) => &mut parsed.loss,
                k if is(&names.reference_loss, k) => &mut parsed.reference_loss,
                _ => {
                    reader.json(of).map_err(at_field)?;
                    ends.push((Cow::Borrowed(name.as_str()), reader.json.len()));
                    continue;
                }
            };
            *slot = reader.scalar(of, is_time).map_err(at_field)?;
        }
        let n_left = reader.rest.len();
        if n_left > 0 {
            return Err(malformed(format!("{n_left} bytes follow the last field")));
        }
        parsed.members = json.split(ends);
        Ok(parsed)
    }
}

fn not_a_record() -> Reject {
    Reject::new(RejectReason::NotAnObject, "the schema is not of a record")
}

fn malformed(detail: impl Into<String>) -> Reject {
    Reject::new(RejectReason::MalformedAvro, detail)
}

struct Reader<'s, 'd, 'j> {
    schema: &'s AvroSchema,
    rest: &'d [u8],
    json: &'j mut JsonBuffer,
    depth: usize,
    items_left: usize,
}

impl<'s, 'd> Reader<'s, 'd, '_> {
    fn take(&mut self, n: usize) -> Result<&'d [u8], Reject> {
        let Some((taken, rest)) = self.rest.split_at_checked(n) else {
            return Err(malformed(format!("{n} bytes are needed, {} are left", self.rest.len())));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reject> {
        self.take(N).map(|bytes| bytes.try_into().expect("so many were taken"))
    }

    /// Zig-zag, seven bits a byte, least significant first.
    fn long(&mut self) -> Result<i64, Reject> {
        let mut bits = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                break;
            }
            bits |= part << shift;
            if byte < 0x80 {
                return Ok((bits >> 1) as i64 ^ -((bits & 1) as i64));
            }
        }
        Err(malformed("an integer has more than 64 bits"))
    }

    fn int(&mut self) -> Result<i32, Reject> {
        let long = self.long()?;
        i32::try_from(long).map_err(|_| malformed(format!("{long} is no int")))
    }

    fn boolean(&mut self) -> Result<bool, Reject> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(malformed(format!("{other} is no boolean"))),
        }
    }

    fn bytes(&mut self) -> Result<&'d [u8], Reject> {
        let length = self.long()?;
        self.take(usize::try_from(length).map_err(|_| malformed(format!("a length of {length}")))?)
    }

    fn string(&mut self) -> Result<&'d str, Reject> {
        let bytes = self.bytes()?;
        simdutf8::compat::from_utf8(bytes).map_err(|e| Reject::new(RejectReason::InvalidUtf8, e.to_string()))
    }

    fn branch(&mut self, branches: &'s [Type]) -> Result<&'s Type, Reject> {
        let number = self.long()?;
        let branch = usize::try_from(number).ok().and_then(|number| branches.get(number));
        branch.ok_or_else(|| malformed(format!("branch {number} of a union of {}", branches.len())))
    }

    fn symbol(&mut self, symbols: &'s [String]) -> Result<&'s str, Reject> {
        let number = self.long()?;
        let symbol = usize::try_from(number).ok().and_then(|number| symbols.get(number));
        symbol.map(String::as_str).ok_or_else(|| malformed(format!("symbol {number} of an enum of {}", symbols.len())))
    }

    /// A field that has a name of ours.
    fn scalar(&mut self, of: &'s Type, is_time: bool) -> Result<Scalar<'d>, Reject>
    where
        's: 'd,
    {
        let float = |x: f64| if x.is_finite() { Scalar::Float(x) } else { Scalar::Other("not finite") };
        Ok(match of {
            Type::Null => Scalar::Null,
            Type::Boolean => {
                self.boolean()?;
                Scalar::Other("a boolean")
            }
            Type::Int => Scalar::Integer(self.int()?.into()),
            Type::Long { per_millisecond } if is_time => {
                Scalar::Integer(self.long()?.div_euclid(*per_millisecond).into())
            }
            Type::Long { .. } => Scalar::Integer(self.long()?.into()),
            Type::Float => float(f32::from_le_bytes(self.array()?).into()),
            Type::Double => float(f64::from_le_bytes(self.array()?)),
            Type::String => Scalar::String(Cow::Borrowed(self.string()?)),
            Type::Union(branches) => {
                let branch = self.branch(branches)?;
                return self.deeper(|reader| reader.scalar(branch, is_time));
            }
            Type::Named(place) => match &self.schema.named[*place] {
                Named::Enum(symbols) => Scalar::String(Cow::Borrowed(self.symbol(symbols)?)),
                Named::Fixed { .. } => self.other(of, "bytes")?,
                Named::Record(_) | Named::Coming => self.other(of, "a record")?,
            },
            Type::Bytes | Type::Decimal { .. } => self.other(of, "bytes")?,
            Type::Array(_) => self.other(of, "an array")?,
            Type::Map(_) => self.other(of, "a map")?,
        })
    }

    /// Passes over a value that is of no use: its record will be rejected.
    fn other(&mut self, of: &'s Type, kind: &'static str) -> Result<Scalar<'d>, Reject> {
        let end = self.json.len();
        self.json(of)?;
        self.json.truncate(end);
        Ok(Scalar::Other(kind))
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Reject>) -> Result<T, Reject> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(malformed(format!("values stand in one another more than {MAX_DEPTH} times")));
        }
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    /// Any value, as JSON. Unions are their branches, bytes are in base64, numbers that are not finite are strings.
    fn json(&mut self, of: &'s Type) -> Result<(), Reject> {
        match of {
            Type::Null => self.json.push_raw("null"),
            Type::Boolean => {
                let value = self.boolean()?;
                self.json.push(&value)
            }
            Type::Int => {
                let value = self.int()?;
                self.json.push(&value)
            }
            Type::Long { .. } => {
                let value = self.long()?;
                self.json.push(&value)
            }
            Type::Float => {
                let value = f32::from_le_bytes(self.array()?);
                self.json.push_number(value)
            }
            Type::Double => {
                let value = f64::from_le_bytes(self.array()?);
                self.json.push_number(value)
            }
            Type::Bytes => {
                let bytes = self.bytes()?;
                self.push_bytes(bytes, None)
            }
            Type::Decimal { scale } => {
                let bytes = self.bytes()?;
                self.push_bytes(bytes, Some(*scale))
            }
            Type::String => {
                let value = self.string()?;
                self.json.push(value)
            }
            Type::Union(branches) => {
                let branch = self.branch(branches)?;
                self.deeper(|reader| reader.json(branch))
            }
            Type::Array(items) => self.blocks('[', ']', |reader| reader.json(items)),
            Type::Map(values) => self.blocks('{', '}', |reader| {
                let key = reader.string()?;
                reader.json.push(key)?;
                reader.json.push_raw(":")?;
                reader.json(values)
            }),
            Type::Named(place) => self.deeper(|reader| reader.named(*place)),
        }
    }

    fn named(&mut self, place: usize) -> Result<(), Reject> {
        match &self.schema.named[place] {
            Named::Enum(symbols) => {
                let symbol = self.symbol(symbols)?;
                self.json.push(symbol)
            }
            Named::Fixed { bytes, scale } => {
                let bytes = self.take(*bytes)?;
                self.push_bytes(bytes, *scale)
            }
            Named::Record(fields) => {
                self.json.push_raw("{")?;
                for (i, Field { name, of }) in fields.iter().enumerate() {
                    self.json.push_raw(if i > 0 { "," } else { "" })?;
                    self.json.push(name.as_str())?;
                    self.json.push_raw(":")?;
                    self.json(of)?;
                }
                self.json.push_raw("}")
            }
            Named::Coming => unreachable!("all types were read with the schema"),
        }
    }

    /// Items in blocks, each with their number before them, until one of none.
    fn blocks(
        &mut self,
        open: char,
        close: char,
        mut item: impl FnMut(&mut Self) -> Result<(), Reject>,
    ) -> Result<(), Reject> {
        self.json.push_raw(open.encode_utf8(&mut [0; 4]))?;
        let mut is_first = true;
        loop {
            let count = self.long()?;
            if count == 0 {
                break;
            }
            if count < 0 {
                // Followed by the length in bytes, for those who pass over it.
                self.long()?;
            }
            for _ in 0..count.unsigned_abs() {
                self.items_left = self.items_left.checked_sub(1).ok_or_else(|| malformed("more items than bytes"))?;
                if !std::mem::take(&mut is_first) {
                    self.json.push_raw(",")?;
                }
                self.deeper(&mut item)?;
            }
        }
        self.json.push_raw(close.encode_utf8(&mut [0; 4]))
    }

    /// As a decimal number in a string where they are one, else in base64.
    fn push_bytes(&mut self, bytes: &[u8], scale: Option<usize>) -> Result<(), Reject> {
        match scale.and_then(|scale| decimal(bytes, scale)) {
            Some(number) => self.json.push(number.as_str()),
            None => self.json.push(crate::base64(bytes).as_str()),
        }
    }
}

/// Of a big-endian two's complement number; `None` of one with more than 128 bits.
fn decimal(bytes: &[u8], scale: usize) -> Option<String> {
    if bytes.is_empty() || bytes.len() > 16 {
        return None;
    }
    let sign = if bytes[0] & 0x80 == 0 { 0 } else { -1i128 };
    let number = bytes.iter().fold(sign, |number, byte| number << 8 | i128::from(*byte));
    let digits = format!("{:0>width$}", number.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let (sign, point) = (if number < 0 { "-" } else { "" }, if scale > 0 { "." } else { "" });
    Some(format!("{sign}{whole}{point}{fraction}"))
}
