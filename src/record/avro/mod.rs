//! Avro: a writer's schema, and the fields of the datums that it describes.
//!
//! Read without an intermediate tree: the text stays where it is in the record, and hostile lengths allocate nothing.

mod datum;
mod schema;

pub use schema::AvroSchema;

#[cfg(test)]
mod tests;
