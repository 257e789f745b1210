//! Byte strings that are expected in a stream.

/// Looks for byte strings in this order, with anything in between: each is taken at its first place after the one
/// before, as Envoy does. Of what went by it keeps less than the longest of them.
pub(super) struct Matching<'a> {
    expected: &'a [Vec<u8>],
    /// What may be the begin of the next one.
    tail: Vec<u8>,
}

impl<'a> Matching<'a> {
    pub(super) fn new(expected: &'a [Vec<u8>]) -> Self {
        Self { expected, tail: Vec::new() }
    }

    /// Goes on with `bytes`: whether all are found by now.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        self.tail.extend_from_slice(bytes);
        let mut from = 0;
        while let [next, rest @ ..] = self.expected {
            let Some(at) = find(&self.tail[from..], next) else {
                let keep = (self.tail.len() - from).min(next.len() - 1);
                from = self.tail.len() - keep;
                break;
            };
            from += at + next.len();
            self.expected = rest;
        }
        self.tail.drain(..from);
        self.expected.is_empty()
    }
}

/// Where `wanted` begins first in `bytes`.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let Some(first) = wanted.first() else { return Some(0) };
    let starts = bytes.len().checked_sub(wanted.len())? + 1;
    let mut from = 0;
    while let Some(at) = bytes[from..starts].iter().position(|byte| byte == first) {
        if bytes[from + at..].starts_with(wanted) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(expected: &[&str], text: &str) -> bool {
        let expected: Vec<_> = expected.iter().map(|part| part.as_bytes().to_vec()).collect();
        let whole = Matching::new(&expected).feed(text.as_bytes());
        let mut bytewise = Matching::new(&expected);
        let mut found = bytewise.feed(b"");
        for byte in text.bytes() {
            found = bytewise.feed(&[byte]);
        }
        assert_eq!(whole, found, "{expected:?} in {text:?} in one piece and byte by byte");
        whole
    }

    #[test]
    fn in_order_with_anything_in_between() {
        assert!(matches(&["PONG"], "xxPONGxx"));
        assert!(matches(&["a", "b"], "a--b"));
        assert!(matches(&["aab"], "aaab"));
        assert!(matches(&["ab", "ab"], "abab"));
        assert!(matches(&[], ""));
        assert!(matches(&["", "a"], "a"));
        assert!(!matches(&["a", "b"], "b--a"));
        assert!(!matches(&["aa", "a"], "aa"), "no byte serves twice");
        assert!(!matches(&["PONG"], "PON"));
        assert!(!matches(&["a"], ""));
    }

    #[test]
    fn keeps_less_than_the_longest() {
        let expected = [b"needle".to_vec()];
        let mut matching = Matching::new(&expected);
        for _ in 0..100 {
            assert!(!matching.feed(&[b'n'; 1000]));
        }
        assert_eq!(matching.tail.len(), 5);
    }
}
