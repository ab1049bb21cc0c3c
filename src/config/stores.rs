//! URLs of object stores and their settings as they are written.

use std::collections::BTreeMap;

use super::Secret;
use super::reader::{Reader, is_secret};

/// Of URLs that name objects.
pub const STORE_SCHEMES: [&str; 3] = ["s3", "gs", "az"];

pub(super) fn sink_url(r: &mut Reader) -> url::Url {
    let here = url::Url::parse("file:///").expect("a valid URL");
    r.parse("sink.url", here, |value| match url::Url::parse(value) {
        _ if value.is_empty() => Err("must be set".to_owned()),
        Ok(url) if url.scheme() == "file" && url.to_file_path().is_ok() => Ok(url),
        Ok(url) if url.scheme() == "file" => {
            let host = url.host_str().unwrap_or_default();
            Err(format!("names the host `{host}`; a path on this machine has three slashes, file:///…"))
        }
        Ok(url) if STORE_SCHEMES.contains(&url.scheme()) => match url.host_str() {
            Some(host) if !host.is_empty() && url.query().is_none() => Ok(url),
            _ => Err(format!("expected {}://BUCKET/PREFIX", url.scheme())),
        },
        Ok(url) if value.contains("://") => Err(format!(
            "scheme `{}` is not supported; expected a folder, or a URL with file, s3, gs or az",
            url.scheme()
        )),
        _ => std::path::absolute(value)
            .ok()
            .and_then(|path| url::Url::from_directory_path(path).ok())
            .ok_or("is no path".to_owned()),
    })
}

/// Whether a store of this scheme has such a setting.
pub fn is_store_option(scheme: &str, option: &str) -> bool {
    match scheme {
        "s3" => option.parse::<object_store::aws::AmazonS3ConfigKey>().is_ok(),
        "gs" => option.parse::<object_store::gcp::GoogleConfigKey>().is_ok(),
        "az" => option.parse::<object_store::azure::AzureConfigKey>().is_ok(),
        _ => false,
    }
}

pub(super) fn sink_options(r: &mut Reader, scheme: &str) -> BTreeMap<String, Secret> {
    let options = r.map("sink.options");
    for (option, value) in &options {
        if !is_store_option(scheme, option) {
            let shown = if is_secret(option) { "***" } else { value };
            r.error(&format!("sink.options.{option}"), shown, format!("is no setting of a {scheme}:// store"));
        }
    }
    options.into_iter().map(|(option, value)| (option, Secret::new(value))).collect()
}
