//! What is wanted of a record beside its value: its key, some of its headers.

use rdkafka::message::{BorrowedMessage, Headers, Message};

use crate::record::RecordPart;
use crate::source::Batch;

/// Adds them behind the record, which has just been pushed. Of a header that stands there twice the last one counts.
pub(super) fn push_parts(batch: &mut Batch, wanted: &[RecordPart], message: &BorrowedMessage<'_>) {
    for part in wanted {
        batch.push_part(match part {
            RecordPart::Key => message.key(),
            RecordPart::Header(name) => {
                let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                headers.filter(|header| header.key == name).last().and_then(|header| header.value)
            }
        });
    }
}
