//! The text of a schema and of what it imports to descriptors. Nothing is read from files.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost_reflect::prost::Message;
use prost_reflect::prost_types::FileDescriptorProto;
use protox::Compiler;
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

use super::ProtobufSchema;
use crate::record::schema::SchemaText;

/// What a registry calls the schema itself: nothing. So it gets a name that no import has.
const OWN_NAME: &str = "<schema>";

/// What Confluent's serialisers bring along, and registries do not have.
const BUILT_IN: [(&str, &str); 3] = [
    (
        "confluent/meta.proto",
        r#"syntax = "proto3";
package confluent;
import "google/protobuf/descriptor.proto";
message Meta {
  string doc = 1;
  map<string, string> params = 2;
  repeated string tags = 3;
}
extend google.protobuf.FileOptions { Meta file_meta = 1088; }
extend google.protobuf.MessageOptions { Meta message_meta = 1088; }
extend google.protobuf.FieldOptions { Meta field_meta = 1088; }
extend google.protobuf.EnumOptions { Meta enum_meta = 1088; }
extend google.protobuf.EnumValueOptions { Meta enum_value_meta = 1088; }
"#,
    ),
    ("confluent/type/decimal.proto", DECIMAL),
    ("confluent/types/decimal.proto", DECIMAL),
];

const DECIMAL: &str = r#"syntax = "proto3";
package confluent.type;
message Decimal {
  bytes value = 1;
  uint32 precision = 2;
  int32 scale = 3;
}
"#;

struct Texts(Vec<(String, String)>);

impl FileResolver for Texts {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let given = self.0.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str());
        let built_in = BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text);
        let text = given.or(built_in).ok_or_else(|| protox::Error::file_not_found(name))?;
        match descriptor(name, text) {
            Some(file) => Ok(File::from_file_descriptor_proto(file)),
            None => File::from_source(name, text),
        }
    }
}

/// Some clients do not register the text of a schema but its descriptor, in base64, and some registries give back what they got.
fn descriptor(name: &str, text: &str) -> Option<FileDescriptorProto> {
    let bytes = BASE64_STANDARD.decode(text).ok()?;
    let file = FileDescriptorProto::decode(&*bytes).ok()?;
    // Others import it by this name, whatever it was called where it was compiled.
    Some(FileDescriptorProto { name: Some(name.to_owned()), ..file })
}

impl ProtobufSchema {
    /// The error says where, and what is wrong.
    pub(in crate::record) fn compile(schema: &SchemaText) -> Result<Self, String> {
        let mut texts = schema.references.clone();
        texts.push((OWN_NAME.to_owned(), schema.text.clone()));
        let mut resolver = ChainFileResolver::new();
        resolver.add(Texts(texts));
        resolver.add(GoogleFileResolver::new());
        let mut compiler = Compiler::with_file_resolver(resolver);
        compiler.include_source_info(false).include_imports(true);
        compiler.open_file(OWN_NAME).map_err(|e| e.to_string())?;
        let file = compiler.descriptor_pool().get_file_by_name(OWN_NAME);
        file.map(|file| ProtobufSchema { file }).ok_or_else(|| "it has no descriptor".to_owned())
    }
}
