//! The page at `/` and the OpenAPI document: files inside the binary, no build step, no external asset.
//!
//! The page is a few files, served as they are in `page/`. The policy lets scripts and styles come from this gateway
//! alone, forbids inline ones, and has the browser refuse to parse text as HTML.

use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, ApiResult};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// A file of the page.
struct Asset {
    name: &'static str,
    kind: &'static str,
    content: &'static str,
}

macro_rules! assets {
    ($($name:literal $kind:expr;)*) => {
        [$(Asset { name: $name, kind: $kind, content: include_str!(concat!("page/", $name)) },)*]
    };
}

const ASSETS: [Asset; 18] = assets! {
    "index.html" HTML;
    "base.css" CSS;
    "views.css" CSS;
    "theme.js" SCRIPT;
    "app.js" SCRIPT;
    "api.js" SCRIPT;
    "dom.js" SCRIPT;
    "format.js" SCRIPT;
    "chart.js" SCRIPT;
    "live.js" SCRIPT;
    "signin.js" SCRIPT;
    "overview.js" SCRIPT;
    "batches.js" SCRIPT;
    "submit.js" SCRIPT;
    "batch.js" SCRIPT;
    "pods.js" SCRIPT;
    "scaling.js" SCRIPT;
    "try.js" SCRIPT;
};

/// Names the content: browsers ask again each time, and get the file only if it is another one.
static TAG: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = blake3::Hasher::new();
    for asset in &ASSETS {
        hasher.update(asset.content.as_bytes());
    }
    format!("\"{}\"", &hasher.finalize().to_hex()[..16])
});

pub(super) async fn index(headers: HeaderMap) -> Response {
    send(&headers, &ASSETS[0])
}

pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> ApiResult<Response> {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    asset.map(|asset| send(&headers, asset)).ok_or_else(|| ApiError::not_found("file of the page", &name))
}

fn send(headers: &HeaderMap, asset: &Asset) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == TAG.as_bytes());
    let described = [
        (header::CONTENT_TYPE, asset.kind),
        (header::ETAG, TAG.as_str()),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    let (status, content) =
        if known { (StatusCode::NOT_MODIFIED, "") } else { (StatusCode::OK, asset.content) };
    (status, described, Body::from(content)).into_response()
}

pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("page/openapi.json")).into_response()
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::JobKey;
    use ternfleet_proto::openai::{self, Endpoint};

    use super::*;

    #[test]
    fn the_page_is_small_and_loads_nothing_from_elsewhere() {
        let bytes: usize = ASSETS.iter().map(|asset| asset.content.len()).sum();
        assert!(bytes < 100_000, "{bytes} bytes");
        for Asset { name, content, .. } in &ASSETS {
            let own = content.replace("http://www.w3.org/", "").replace("http://example.com", "");
            for outside in ["http://", "https://", "//cdn", "@import", "innerHTML", "outerHTML", "style=\""] {
                assert!(!own.contains(outside), "{outside} stands in {name}");
            }
            for inline in ["<script>", "<style", "onclick=", "javascript:"] {
                assert!(!content.contains(inline), "{inline} stands in {name}");
            }
        }
    }

    #[test]
    fn the_openapi_document_lists_every_format_and_constraint_of_an_answer() {
        let document: serde_json::Value = serde_json::from_str(include_str!("page/openapi.json")).unwrap();
        let schemas = &document["components"]["schemas"];
        let formats = ["text", "json_object", "json_schema"];
        assert_eq!(schemas["ResponseFormat"]["properties"]["type"]["enum"], serde_json::json!(formats));
        let constraints = schemas["StructuredOutputs"]["properties"].as_object().unwrap();
        for request in ["CompletionRequest", "ChatRequest"] {
            let fields = &schemas[request]["properties"];
            assert_eq!(fields["response_format"]["$ref"], "#/components/schemas/ResponseFormat", "{request}");
            assert_eq!(
                fields["structured_outputs"]["$ref"], "#/components/schemas/StructuredOutputs",
                "{request}"
            );
        }
        let taken = |field: &str, value: serde_json::Value| {
            let body = serde_json::json!({ "prompt": "a", field: value });
            let job = JobKey { batch: "b".parse().unwrap(), index: 0 };
            openai::parse_single(Endpoint::Completions, body.to_string().as_bytes(), &job)
        };
        for format in formats {
            let schema = serde_json::json!({ "name": "a", "schema": {} });
            let json_schema = (format == "json_schema").then_some(schema);
            let value = serde_json::json!({ "type": format, "json_schema": json_schema });
            taken("response_format", value).unwrap();
        }
        for (name, kind) in constraints {
            let value = match kind["type"].as_str() {
                Some("array") => serde_json::json!(["a"]),
                Some("boolean") => serde_json::json!(true),
                Some(_) => serde_json::json!("a"),
                None => serde_json::json!({}),
            };
            taken("structured_outputs", serde_json::json!({ name: value })).unwrap();
        }
    }

    #[test]
    fn every_file_that_the_page_asks_for_is_served_and_every_file_is_asked_for() {
        let asked = |of: &Asset, name: &str| {
            of.content.contains(&format!("/page/{name}\"")) || of.content.contains(&format!("\"./{name}\""))
        };
        for asset in &ASSETS[1..] {
            assert!(ASSETS.iter().any(|other| asked(other, asset.name)), "nobody asks for {}", asset.name);
        }
        for asset in &ASSETS {
            for part in asset.content.split("from \"./").skip(1) {
                let name = part.split('"').next().unwrap();
                assert!(ASSETS.iter().any(|known| known.name == name), "{} imports {name}", asset.name);
            }
        }
    }
}
