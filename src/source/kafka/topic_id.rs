//! The identity of a topic: one that was deleted and made again under its old name has another.
//!
//! The client library has it, its Rust wrapper does not: here, and only here, it is called directly.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};

/// Something of the client library that is given back when it is dropped. Never null.
struct Guard<T> {
    pointer: *mut T,
    give_back: unsafe extern "C" fn(*mut T),
}

impl<T> Guard<T> {
    /// # Safety
    /// `pointer` is null, or owned by the caller and to be given back by `give_back`.
    unsafe fn new(pointer: *mut T, give_back: unsafe extern "C" fn(*mut T), what: &str) -> Result<Self, String> {
        if pointer.is_null() { Err(what.to_owned()) } else { Ok(Guard { pointer, give_back }) }
    }
}

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        // SAFETY: owned, by `new`; not used afterwards.
        unsafe { (self.give_back)(self.pointer) }
    }
}

/// The id of a topic in the text that Kafka's own tools show; `None` from those who have none: brokers before 2.8, and
/// clusters without a controller, as the in-process one, which would never answer.
pub(in crate::source) fn topic_id<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Option<String>, String> {
    let brokers = consumer.fetch_metadata(Some(topic), timeout).map_err(|e| e.to_string())?;
    let name = CString::new(topic).map_err(|e| e.to_string())?;
    let timeout_ms = timeout.as_millis().min(i32::MAX as u128) as i32;
    let client = consumer.client().native_ptr();
    // SAFETY: `client` lives as long as `consumer`. What is made here is owned by guards, which are dropped in the opposite
    // order, the event before its queue. The library copies the name. Results point into the event, which outlives them; texts are
    // copied at once.
    unsafe {
        let controller = native::rd_kafka_controllerid(client, timeout_ms);
        if brokers.brokers().iter().all(|broker| broker.id() != controller) {
            return Ok(None);
        }
        let topics = native::rd_kafka_TopicCollection_of_topic_names([name.as_ptr()].as_mut_ptr(), 1);
        let topics = Guard::new(topics, native::rd_kafka_TopicCollection_destroy, "no memory")?;
        let options =
            native::rd_kafka_AdminOptions_new(client, native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let options = Guard::new(options, native::rd_kafka_AdminOptions_destroy, "topics cannot be described")?;
        let mut problem = [0 as c_char; 256];
        let set = native::rd_kafka_AdminOptions_set_request_timeout(
            options.pointer,
            timeout_ms,
            problem.as_mut_ptr(),
            problem.len(),
        );
        if set != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(text(problem.as_ptr()));
        }
        let queue = native::rd_kafka_queue_new(client);
        let queue = Guard::new(queue, native::rd_kafka_queue_destroy, "no queue")?;
        native::rd_kafka_DescribeTopics(client, topics.pointer, options.pointer, queue.pointer);
        let event = native::rd_kafka_queue_poll(queue.pointer, timeout_ms);
        let event = Guard::new(event, native::rd_kafka_event_destroy, "no answer in time")?;
        if native::rd_kafka_event_error(event.pointer) != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(text(native::rd_kafka_event_error_string(event.pointer)));
        }
        let result = native::rd_kafka_event_DescribeTopics_result(event.pointer);
        let mut n = 0;
        let found = match result.is_null() {
            true => std::ptr::null_mut(),
            false => native::rd_kafka_DescribeTopics_result_topics(result, &raw mut n),
        };
        if found.is_null() || n == 0 {
            return Err("the answer is empty".to_owned());
        }
        let error = native::rd_kafka_TopicDescription_error(*found);
        if native::rd_kafka_error_code(error) != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(text(native::rd_kafka_error_string(error)));
        }
        let id = native::rd_kafka_TopicDescription_topic_id(*found);
        let bits = (native::rd_kafka_Uuid_most_significant_bits(id), native::rd_kafka_Uuid_least_significant_bits(id));
        // Kafka's tools write the alphabet that is safe in URLs.
        let base64 = || text(native::rd_kafka_Uuid_base64str(id)).replace('+', "-").replace('/', "_");
        Ok((bits != (0, 0)).then(base64))
    }
}

/// # Safety
/// `pointer` is null or points to a text that ends with a zero.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: by what the caller promises.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
