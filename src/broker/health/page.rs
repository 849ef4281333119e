//! `/`: the status page: three static files, built into the program. The page reads `/events` with the token that
//! follows `#` in its address, which browsers do not send.
//!
//! It may load its own style and script and connect to its own origin; it must not be embedded.

use actix_web::HttpResponse;
use actix_web::http::header;

const INDEX: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
/// One idea per file, in the order of their dependencies.
const SCRIPT: &str = concat!(
    include_str!("page/text.js"),
    include_str!("page/charts.js"),
    include_str!("page/tables.js"),
    include_str!("page/render.js"),
    include_str!("page/stream.js"),
);

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page.
pub(super) async fn index() -> HttpResponse {
    answer("text/html; charset=utf-8", INDEX)
}

/// Its style sheet.
pub(super) async fn style() -> HttpResponse {
    answer("text/css; charset=utf-8", STYLE)
}

/// Its script.
pub(super) async fn script() -> HttpResponse {
    answer("text/javascript; charset=utf-8", SCRIPT)
}

fn answer(kind: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, kind))
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .body(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_that_its_policy_forbids() {
        for forbidden in ["<style", " style=", "//cdn", "javascript:", "<img", "<iframe", "<form", "://"] {
            assert!(!INDEX.contains(forbidden), "{forbidden} in the page");
        }
        assert!(INDEX.contains(r#"<link rel="stylesheet" href="style.css">"#));
        assert!(INDEX.contains(r#"<script src="script.js" defer></script>"#) && INDEX.matches("<script").count() == 1);
        assert!(!INDEX.split('<').any(|tag| tag.contains(" on")), "a handler in the page");
        // Foreign text is set as text, and nothing is compiled.
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", ".style"]
        {
            assert!(!SCRIPT.contains(forbidden), "{forbidden} in the script");
        }
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
    }
}
