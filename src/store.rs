//! Object stores by URL: shards go there, and files are read from there, with the same options and the same patience.

use std::collections::BTreeMap;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::config::Secret;

/// Of one request to an object store. What fails for longer than the retries is tried again by whoever asked, or reported.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const RETRIES: usize = 5;

/// Settings of a store by name: credentials, region, endpoint. The environment has those that are not among them.
pub type StoreOptions = BTreeMap<String, Secret>;

/// The store of a URL with one of [`crate::config::STORE_SCHEMES`], from its root on: a bucket or container.
pub fn open(url: &Url, options: &StoreOptions) -> Result<Box<dyn ObjectStore>, object_store::Error> {
    /// The same for every kind of builder: the environment, the URL, then our options.
    macro_rules! build {
        ($builder:ty, $with:expr) => {{
            let client = ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_connect_timeout(CONNECT_TIMEOUT);
            let retry = RetryConfig { retry_timeout: RETRY_TIMEOUT, max_retries: RETRIES, ..RetryConfig::default() };
            let builder = <$builder>::from_env().with_client_options(client).with_retry(retry);
            let mut builder = $with(builder.with_url(url.as_str()));
            for (option, value) in options {
                builder = builder.with_config(option.parse()?, value.reveal());
            }
            Box::new(builder.build()?)
        }};
    }
    Ok(match url.scheme() {
        "s3" => build!(AmazonS3Builder, |b: AmazonS3Builder| b.with_checksum_algorithm(Checksum::SHA256)),
        "gs" => build!(GoogleCloudStorageBuilder, |b| b),
        _ => build!(MicrosoftAzureBuilder, |b| b),
    })
}
