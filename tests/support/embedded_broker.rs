//! Runs the in-process Kafka cluster until its standard input closes: `embedded_broker TOPIC PARTITIONS`.
//! Prints the address of the broker on one line.

use std::io::{Read, Write};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (topic, partitions) = (arguments[1].clone(), arguments[2].parse().expect("a number of partitions"));
    let cluster = winnowd::source::embedded::EmbeddedCluster::start(&[topic], partitions).expect("a cluster");
    println!("{}", cluster.bootstrap());
    std::io::stdout().flush().expect("standard output");
    // Ends with the test, however that ends.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
