//! The HTTPS client of the user's verbs: one request per connection, the authority pinned, repeats only where safe.

pub(crate) mod http;
pub(crate) mod management;
pub(crate) mod retry;
pub(crate) mod tls;
pub(crate) mod url;

pub(crate) use http::{Http, Stage};
pub(crate) use management::Management;
pub(crate) use url::BaseUrl;
