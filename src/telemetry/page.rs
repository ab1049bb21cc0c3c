//! The page that people open: its files, embedded, with the headers that keep everything else out.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// Nothing but the files of this page and answers of this daemon: text of documents that became code could not run or call out.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// (path, type, content)
const FILES: [(&str, &str, &str); 10] = [
    ("/", HTML, include_str!("page/page.html")),
    ("/page/page.css", CSS, include_str!("page/page.css")),
    ("/page/page.js", SCRIPT, include_str!("page/page.js")),
    ("/page/view.js", SCRIPT, include_str!("page/view.js")),
    ("/page/plots.js", SCRIPT, include_str!("page/plots.js")),
    ("/page/format.js", SCRIPT, include_str!("page/format.js")),
    ("/page/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("/page/vendor/uplot.js", SCRIPT, include_str!("page/vendor/uPlot.iife.min.js")),
    ("/page/vendor/uplot.css", CSS, include_str!("page/vendor/uPlot.min.css")),
    ("/page/vendor/uplot-license.txt", "text/plain; charset=utf-8", include_str!("page/vendor/LICENSE")),
];
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Routes of all files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, &(path, kind, content)| {
        router.route(path, get(move || async move { answer(kind, content) }))
    })
}

fn answer(kind: &'static str, content: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 6] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // The next version of the daemon brings another page.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, content).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_for_its_own_files_and_for_nothing_else() {
        let known: Vec<&str> =
            FILES.iter().map(|(path, ..)| *path).chain(["/metrics", "/healthz", "/readyz"]).collect();
        let mut n_asked = 0;
        for (path, _, content) in FILES.iter().filter(|(path, ..)| !path.contains("vendor")) {
            for quoted in
                content.split(['"', '\'', '`']).filter(|text| text.starts_with("/page/") || text.starts_with("http"))
            {
                assert!(known.contains(&quoted) || quoted == "http://www.w3.org/2000/svg", "{path} asks for {quoted}");
                n_asked += 1;
            }
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "localStorage",
                "onclick=",
                " style=\"",
            ] {
                assert!(!content.contains(forbidden), "{path} has {forbidden}");
            }
        }
        assert!(n_asked >= 6, "only {n_asked} files are asked for");
    }

    #[test]
    fn every_file_comes_with_headers_that_keep_others_out() {
        for (path, kind, content) in FILES {
            let answer = answer(kind, content);
            let header =
                |name: HeaderName| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            assert_eq!(
                (header(header::CONTENT_TYPE), header(header::X_CONTENT_TYPE_OPTIONS)),
                (kind, "nosniff"),
                "{path}"
            );
            assert_eq!(
                (header(header::REFERRER_POLICY), header(header::X_FRAME_OPTIONS)),
                ("no-referrer", "DENY"),
                "{path}"
            );
            let policy: Vec<_> = header(header::CONTENT_SECURITY_POLICY).split("; ").collect();
            assert!(policy.contains(&"default-src 'none'") && policy.contains(&"frame-ancestors 'none'"), "{policy:?}");
            assert!(policy.iter().all(|rule| !rule.contains("unsafe") && !rule.contains('*')), "{policy:?}");
            assert!(!content.is_empty(), "{path}");
        }
    }

    #[test]
    fn what_is_not_ours_says_whose_it_is() {
        let content = |path: &str| FILES.iter().find(|(known, ..)| *known == path).expect("a file").2;
        assert!(content("/page/vendor/uplot.js").starts_with("/*! https://github.com/leeoniya/uPlot (v1."));
        assert!(content("/page/vendor/uplot-license.txt").contains("MIT License"));
    }
}
