//! Query strings, read the way Kubernetes reads them: the first value of a key wins, booleans are lenient.

/// Most parameters that one request may carry.
const MAX_PARAMETERS: usize = 256;

/// The parameters of a request, decoded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the part of a URL behind `?`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parameters = Vec::new();
        for pair in text.split('&').filter(|p| !p.is_empty()) {
            if parameters.len() == MAX_PARAMETERS {
                return Err(format!("more than {MAX_PARAMETERS} query parameters"));
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            parameters.push((decode(key, true)?, decode(value, true)?));
        }
        Ok(Self(parameters))
    }

    /// The first value of `key`.
    pub(crate) fn first(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The first value of `key` unless it is empty.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.first(key).filter(|v| !v.is_empty())
    }

    /// All values of `key`.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A boolean: present means true, except for `0` and `false` in any case.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.flag_if_given(key).unwrap_or(false)
    }

    /// A boolean that may be absent.
    pub(crate) fn flag_if_given(&self, key: &str) -> Option<bool> {
        self.first(key).map(|v| v != "0" && !v.eq_ignore_ascii_case("false"))
    }
}

/// Percent-decodes `text` into UTF-8; `+` is a space in queries only.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
                    return Err(format!("invalid percent encoding in {text:?}"));
                };
                bytes.push(u8::try_from(high * 16 + low).unwrap_or(0));
            }
            b'+' if plus_is_space => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).map_err(|_| format!("{text:?} is not UTF-8 when decoded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_value_wins_and_booleans_are_lenient() {
        let query = Query::parse("watch&limit=5&limit=6&a=b%20c+d&x=false&y=0&z=FALSE&t=1&e=").unwrap();
        assert!(query.flag("watch") && query.flag("t") && query.flag("e"));
        assert!(!query.flag("x") && !query.flag("y") && !query.flag("z") && !query.flag("absent"));
        assert_eq!(query.first("limit"), Some("5"));
        assert_eq!(query.all("limit").collect::<Vec<_>>(), ["5", "6"]);
        assert_eq!(query.first("a"), Some("b c d"));
        assert_eq!(query.text("e"), None);
        assert_eq!(query.flag_if_given("absent"), None);
    }

    #[test]
    fn bad_encodings_and_floods_are_refused() {
        for bad in ["a=%", "a=%2", "a=%zz", "a=%ff"] {
            assert!(Query::parse(bad).is_err(), "{bad}");
        }
        assert!(Query::parse(&"a=1&".repeat(MAX_PARAMETERS + 1)).is_err());
    }
}
