//! A scanner that knows just enough Rust to count functions and see names in code.

/// A function: its name and the lines from `fn` to its closing brace (from 1).
#[derive(Debug, PartialEq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) first: usize,
    pub(crate) last: usize,
}

/// The source with comments, strings and character literals turned to blanks.
/// Every remaining byte keeps its line and column.
pub(crate) fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end == at {
            out.push(if bytes[at].is_ascii() { bytes[at] } else { b' ' });
            at += 1;
        } else {
            let blank = |b: &u8| if *b == b'\n' { b'\n' } else { b' ' };
            out.extend(bytes[at..end].iter().map(blank));
            at = end;
        }
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Where the comment or literal that starts at `at` ends; `at` if none starts there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return block_comment_end(bytes, at);
    }
    if rest[0] == b'"' {
        return string_end(bytes, at + 1);
    }
    if rest[0] == b'\'' {
        return char_end(bytes, at);
    }
    // r"..", r#".."#, br".." and the like; not the end of a name such as `for"`.
    if !(at > 0 && is_word(bytes[at - 1])) {
        let prefix = rest.iter().take_while(|b| matches!(b, b'b' | b'c' | b'r')).count();
        let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
        let quote = rest.get(prefix + hashes) == Some(&b'"');
        if (1..=2).contains(&prefix) && quote && rest[prefix - 1] == b'r' {
            return raw_string_end(bytes, at + prefix + hashes + 1, hashes);
        }
    }
    at
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_string_end(bytes: &[u8], start: usize, hashes: usize) -> usize {
    let closes =
        |at: &usize| bytes[*at] == b'"' && bytes[at + 1..].iter().take_while(|b| **b == b'#').count() >= hashes;
    (start..bytes.len())
        .find(closes)
        .map_or(bytes.len(), |at| at + 1 + hashes)
}

/// `'a'` and `'\n'` are literals, `'a` is a lifetime.
fn char_end(bytes: &[u8], at: usize) -> usize {
    if bytes.get(at + 1) == Some(&b'\\') {
        let close = bytes[at + 3..].iter().position(|b| *b == b'\'');
        return close.map_or(bytes.len(), |offset| at + 3 + offset + 1);
    }
    let close = bytes.iter().skip(at + 1).take(5).position(|b| *b == b'\'');
    match close {
        // One character may take four bytes.
        Some(1) => at + 3,
        Some(length @ 2..=4) if !bytes[at + 1].is_ascii() => at + length + 2,
        _ => at,
    }
}

pub(crate) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// All functions with a body, from the output of [`code_only`].
pub(crate) fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let mut open: Vec<Option<(String, usize)>> = Vec::new();
    let mut announced: Option<(String, usize)> = None;
    let (mut parens, mut line) = (0_i32, 1);
    let bytes = code.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'\n' => line += 1,
            b'(' | b'[' => parens += 1,
            b')' | b']' => parens -= 1,
            // A trait's function without body.
            b';' if parens == 0 => announced = None,
            b'{' => open.push(announced.take()),
            b'}' => {
                if let Some(Some((name, first))) = open.pop() {
                    found.push(Function {
                        name,
                        first,
                        last: line,
                    });
                }
            }
            b'f' => {
                if let Some(name) = function_name(bytes, at) {
                    announced = Some((name, line));
                    parens = 0;
                }
            }
            _ => {}
        }
    }
    found.sort_by_key(|f| f.first);
    found
}

/// The name after `fn `; a function pointer type has none.
fn function_name(bytes: &[u8], at: usize) -> Option<String> {
    if at > 0 && is_word(bytes[at - 1]) {
        return None;
    }
    let rest = bytes[at..].strip_prefix(b"fn")?;
    let name = rest.trim_ascii_start();
    let length = name.iter().take_while(|b| is_word(**b)).count();
    let separate = name.len() < rest.len() && length > 0;
    separate.then(|| String::from_utf8_lossy(&name[..length]).into_owned())
}

/// The lines (from 1) that `#[cfg(test)]` takes out of the product.
pub(crate) fn test_lines(code: &str) -> Vec<std::ops::RangeInclusive<usize>> {
    let mut ranges = Vec::new();
    for marker in ["#[cfg(test)]", "#[cfg(all(test", "#[cfg(any(test"] {
        for (start, _) in code.match_indices(marker) {
            let first = line_at(code, start);
            let rest = &code[start + marker.len()..];
            let end = item_end(rest).map_or(code.len(), |end| start + marker.len() + end);
            ranges.push(first..=line_at(code, end));
        }
    }
    ranges
}

/// Where an item ends: at its closing brace, or at a semicolon before any brace.
fn item_end(code: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b';' if depth == 0 => return Some(at),
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth <= 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

fn line_at(code: &str, offset: usize) -> usize {
    code.as_bytes()[..offset].iter().filter(|b| **b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_turn_blank() {
        let source = "a /* x /* y */ z */ b // c\n\"s \\\" t\" r#\"u \" v\"# 'q' '\\'' 'life f";
        let code = code_only(source);
        assert_eq!(code.len(), source.len());
        let words = code.split_whitespace().collect::<Vec<_>>();
        assert_eq!(words, ["a", "b", "'life", "f"]);
        assert_eq!(code.matches('\n').count(), 1);
    }

    #[test]
    fn braces_in_literals_do_not_count() {
        let code = code_only("fn a() {\n  let c = '{'; let s = \"}\";\n}\nfn b() {}\n");
        let found = functions(&code);
        let lines = found
            .iter()
            .map(|f| (f.name.as_str(), f.first, f.last))
            .collect::<Vec<_>>();
        assert_eq!(lines, [("a", 1, 3), ("b", 4, 4)]);
    }

    #[test]
    fn nested_functions_and_bodiless_ones() {
        let code = "trait T {\n fn a(x: fn(u8) -> [u8; 2]);\n fn b() {\n  fn c() {\n  }\n }\n}\n";
        let found = functions(code);
        let lines = found
            .iter()
            .map(|f| (f.name.as_str(), f.first, f.last))
            .collect::<Vec<_>>();
        assert_eq!(lines, [("b", 3, 6), ("c", 4, 5)]);
    }

    #[test]
    fn test_module_is_known() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n";
        assert_eq!(test_lines(code), [2..=5]);
        assert_eq!(test_lines("#[cfg(test)]\nmod tests;\nfn a() {}\n"), [1..=2]);
    }

    #[test]
    fn characters_of_several_bytes_keep_the_line() {
        let source = "let a = 'é'; // ü\nfn b() {}";
        let code = code_only(source);
        assert_eq!(code.len(), source.len());
        assert_eq!(functions(&code)[0].first, 2);
    }
}
