//! The address of an installation: `https://host[:port]`, nothing else.

use crate::error::{Error, Result};
use std::fmt;

/// Port of HTTPS.
const HTTPS: u16 = 443;

/// Scheme, host and port of a gateway. Kubeconfigs and the `vcluster` CLI read the path by position, so there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BaseUrl {
    host: String,
    port: u16,
}

impl BaseUrl {
    /// Reads `text`; a missing scheme means HTTPS, one slash at the end is dropped.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Err(Error::usage(format!("server address {text:?}: {why}")).hint("write it as https://HOST[:PORT]"))
        };
        let rest = match text.split_once("://") {
            Some(("https", rest)) => rest,
            Some(("http", _)) => return wrong("plain http is refused, the access key would travel in clear"),
            Some(_) => return wrong("the scheme must be https"),
            None => text,
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains('@') {
            return wrong("it must not hold a user or password");
        }
        if authority.contains(['/', '?', '#']) {
            return wrong("it must not have a path");
        }
        let Ok(parsed) = authority.parse::<::http::uri::Authority>() else {
            return wrong("that is no host name or address");
        };
        let bare = parsed.host();
        let after = &authority[bare.len()..];
        let port = match after.strip_prefix(':').map(str::parse::<u16>) {
            None if after.is_empty() => HTTPS,
            Some(Ok(port)) if port != 0 => port,
            _ => return wrong("the port must be a number from 1 to 65535"),
        };
        if bare.is_empty() {
            return wrong("the host is missing");
        }
        Ok(Self {
            host: bare.to_ascii_lowercase(),
            port,
        })
    }

    /// Host name or address, without the brackets of IPv6.
    pub(crate) fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Port.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// `host[:port]`, as in the Host header.
    pub(crate) fn authority(&self) -> String {
        if self.port == HTTPS {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, shown) in [
            ("https://127.0.0.1:8443", "https://127.0.0.1:8443"),
            ("https://Hanse.example/", "https://hanse.example"),
            ("hanse.example:443", "https://hanse.example"),
            ("https://[::1]:8443", "https://[::1]:8443"),
        ] {
            assert_eq!(BaseUrl::parse(text).unwrap().to_string(), shown);
        }
        assert_eq!(BaseUrl::parse("https://[::1]:1").unwrap().host(), "::1");
    }

    #[test]
    fn what_is_refused_says_why() {
        for (text, why) in [
            ("http://a", "plain http"),
            ("ftp://a", "scheme"),
            ("https://a/b", "path"),
            ("https://a?x", "path"),
            ("https://u:p@a", "password"),
            ("https://a:0", "port"),
            ("https://a:99999", "port"),
            ("https://a:x", ""),
            ("https://", ""),
            ("", ""),
            ("https://a b", ""),
        ] {
            let error = BaseUrl::parse(text).unwrap_err();
            assert!(error.to_string().contains(why), "{text}: {error}");
            assert!(error.remedy().unwrap().contains("https://HOST"), "{text}");
        }
    }
}
