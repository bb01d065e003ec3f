//! The few pages that people see in a browser. No scripts, nothing from elsewhere; whatever comes from outside is escaped.

use crate::body::{self, Response};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, LOCATION, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, StatusCode};
use std::fmt::Write as _;

/// Forms may be sent to us only; styles are our own.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:32rem;margin:12vh auto;padding:0 1rem;color:#1c2733}\
    h1{font-size:1.4rem}a.button,button{display:block;width:100%;box-sizing:border-box;margin:.6rem 0;padding:.7rem 1rem;\
    border:0;border-radius:.4rem;background:#12548a;color:#fff;font:inherit;text-align:center;text-decoration:none}\
    code{display:block;padding:.7rem;background:#eef2f6;border-radius:.4rem;overflow-wrap:anywhere}\
    input{font:inherit;padding:.6rem;width:100%;box-sizing:border-box}.code{font-size:1.6rem;letter-spacing:.1em}";

/// Text that is safe inside HTML and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// What no page and no redirect of a login may do without.
fn guard(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Addresses hold codes.
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// A page; `content` is HTML already.
pub(super) fn page(code: StatusCode, title: &str, content: &str) -> Response {
    let title = escape(title);
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title} - Hanse</title><style>{STYLE}</style><h1>{title}</h1>{content}</html>\n"
    );
    let mut response = Response::new(body::full(html));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    guard(headers);
    response
}

/// A page that says what went wrong.
pub(super) fn failure(code: StatusCode, why: &str) -> Response {
    page(code, "Login failed", &format!("<p>{}</p>", escape(why)))
}

/// Sends the browser elsewhere, with GET.
pub(super) fn redirect(to: &str) -> Response {
    let Ok(location) = HeaderValue::from_str(to) else {
        return failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the way on cannot be told to the browser",
        );
    };
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(LOCATION, location);
    guard(response.headers_mut());
    response
}

/// One button per provider: its name and where it leads.
pub(super) fn choice(buttons: &[(String, String)], device: Option<&str>) -> Response {
    let mut content = String::new();
    if let Some(code) = device {
        let code = escape(code);
        write!(
            content,
            "<p>To let a device in that shows this code:</p><code class=\"code\">{code}</code>"
        )
        .ok();
    }
    for (title, href) in buttons {
        let (title, href) = (escape(title), escape(href));
        write!(content, "<a class=\"button\" href=\"{href}\">Log in with {title}</a>").ok();
    }
    page(StatusCode::OK, "Log in", &content)
}

/// Where the short code of a device is typed.
pub(super) fn device() -> Response {
    let content = "<form action=\"/login\" method=\"get\"><p><label>Code that the device shows \
                   <input class=\"code\" name=\"device\" autocomplete=\"off\" autofocus required maxlength=\"24\"></label></p>\
                   <button>Go on</button></form>";
    page(StatusCode::OK, "Let a device in", content)
}

/// Asks a person who has logged in whether a device may be he.
pub(super) fn question(user: &str, code: &str, sealed: &str) -> Response {
    let (user, code, sealed) = (escape(user), escape(code), escape(sealed));
    let content = format!(
        "<p>You are <b>{user}</b>. A device wants to log in as you. It must show this code:</p><code class=\"code\">{code}</code>\
         <p>If you did not begin this yourself, on a device in front of you, close this page: somebody else would be you.</p>\
         <form action=\"/auth/device/confirm\" method=\"post\"><input type=\"hidden\" name=\"question\" value=\"{sealed}\">\
         <button>Yes, let it in</button></form>"
    );
    page(StatusCode::OK, "Let a device in?", &content)
}

/// A code to be pasted.
pub(super) fn paste(user: &str, code: &str) -> Response {
    let (user, code) = (escape(user), escape(code));
    let content = format!(
        "<p>You are <b>{user}</b>. Paste this into the program that waits for it, if you started that yourself; \
         whoever else asked for it would be you:</p><code>{code}</code>"
    );
    page(StatusCode::OK, "Your code", &content)
}

/// All is done.
pub(super) fn done(user: Option<&str>) -> Response {
    let who = user
        .map(|user| format!("<p>You are <b>{}</b>.</p>", escape(user)))
        .unwrap_or_default();
    page(
        StatusCode::OK,
        "You are logged in",
        &format!("{who}<p>You can close this page and go on where you came from.</p>"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_becomes_html() {
        assert_eq!(escape("<a href='x'>\"&"), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;");
        assert_eq!(redirect("https://a/\r\nset-cookie: x").status(), 500);
    }
}
