//! The Kafka cluster inside this process (librdkafka's mock cluster): for demos and quick tests. Nothing in it lasts,
//! and each partition keeps only its newest 5 MiB.

use std::sync::mpsc;
use std::thread::JoinHandle;

use rdkafka::mocking::MockCluster;

use super::SourceError;

/// A running in-process cluster; ends when dropped. It lives on a thread of its own, because it cannot move.
pub struct EmbeddedCluster {
    bootstrap: String,
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EmbeddedCluster {
    pub fn start(topics: &[String], partitions: i32) -> Result<Self, SourceError> {
        let error = |problem: String| SourceError::Client { bootstrap: "embedded".into(), problem };
        let topics = topics.to_vec();
        let (started, starting) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let serve = move || {
            let cluster = MockCluster::new(1).and_then(|cluster| {
                topics.iter().try_for_each(|topic| cluster.create_topic(topic, partitions, 1))?;
                Ok(cluster)
            });
            match cluster {
                Ok(cluster) => {
                    let _ = started.send(Ok(cluster.bootstrap_servers()));
                    // Until the other end is dropped.
                    let _ = ended.recv();
                }
                Err(e) => drop(started.send(Err(e.to_string()))),
            }
        };
        let thread = std::thread::Builder::new().name("embedded-kafka".into()).spawn(serve);
        let thread = thread.map_err(|e| error(e.to_string()))?;
        let bootstrap = starting.recv().map_err(|e| error(e.to_string()))?.map_err(error)?;
        Ok(EmbeddedCluster { bootstrap, end: Some(end), thread: Some(thread) })
    }

    /// Its address, which other processes on this machine can use too.
    pub fn bootstrap(&self) -> String {
        self.bootstrap.clone()
    }
}

impl Drop for EmbeddedCluster {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported already.
            let _ = thread.join();
        }
    }
}
