//! The page at `/` and the OpenAPI document: files inside the binary, no build step, no external asset.
//!
//! The page is one document put together from `page/`. Its script and style carry a nonce that is new for each answer,
//! so nothing that slips into the page can run.

use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::random_id;

const HEAD: &str = r##"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Ternfleet</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Cpath d='M1 17c5-1 8-3 11-7 1 3 3 4.500 6 4.500 4-2 8-5.500 13-6.500-3 5-7 9-12 11l8 5c-6-.500-10-1.500-13.500-4C9 22 5 21 1 17z' fill='%230a6f7d'/%3E%3C/svg%3E">
"##;

pub(super) async fn index() -> Response {
    let nonce = random_id("");
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy(&nonce)),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (headers, document(&nonce)).into_response()
}

fn policy(nonce: &str) -> String {
    // Widths of bars are set by script through the style object, which a policy leaves alone.
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
}

fn document(nonce: &str) -> String {
    [
        HEAD,
        &format!("<style nonce=\"{nonce}\">\n"),
        include_str!("page/page.css"),
        "</style>\n</head>\n<body>\n",
        include_str!("page/body.html"),
        &format!("<script nonce=\"{nonce}\">\n"),
        include_str!("page/page.js"),
        "</script>\n</body>\n</html>\n",
    ]
    .concat()
}

pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("page/openapi.json")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_loads_nothing_from_elsewhere() {
        let page = document("n");
        assert!(page.len() < 100_000, "{} bytes", page.len());
        for outside in
            ["http://", "https://", "//cdn", "@import", "innerHTML", "insertAdjacentHTML", "style=\""]
        {
            let allowed = page.matches("http://www.w3.org/").count();
            let found = page.matches(outside).count();
            assert!(found == 0 || (outside == "http://" && found == allowed), "{outside} stands in the page");
        }
    }
}
