//! Which certificate is for which name: an exact name first, then the wildcard that covers it.

use std::collections::HashMap;

/// Values by host name, where a name may begin with `*.`.
#[derive(Debug)]
pub struct ByName<T> {
    exact: HashMap<String, T>,
    /// By what follows the `*.`.
    wildcard: HashMap<String, T>,
}

impl<T> Default for ByName<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcard: HashMap::new() }
    }
}

impl<T> ByName<T> {
    /// Adds a value under a name, upper and lower case being the same. The first one under a name
    /// stays: the order of the configuration decides.
    pub fn add(&mut self, name: &str, value: T) {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix("*.") {
            Some(parent) => self.wildcard.entry(parent.to_owned()).or_insert(value),
            None => self.exact.entry(name).or_insert(value),
        };
    }

    /// The value for a name in lower case. A wildcard stands for exactly one label (RFC 9525,
    /// section 6.3).
    pub fn find(&self, name: &str) -> Option<&T> {
        let name = name.strip_suffix('.').unwrap_or(name);
        self.exact.get(name).or_else(|| {
            let (label, parent) = name.split_once('.')?;
            if label.is_empty() { None } else { self.wildcard.get(parent) }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(names: &[&'static str]) -> ByName<&'static str> {
        let mut table = ByName::default();
        names.iter().for_each(|name| table.add(name, *name));
        table
    }

    #[test]
    fn an_exact_name_goes_before_a_wildcard() {
        let table = table(&["*.Example.com", "a.example.com", "*.b.example.com"]);
        for (name, found) in [
            ("a.example.com", Some("a.example.com")),
            ("b.example.com", Some("*.Example.com")),
            ("c.b.example.com", Some("*.b.example.com")),
            ("c.a.example.com", None),
            ("example.com", None),
            (".example.com", None),
            ("b.example.com.", Some("*.Example.com")),
            ("", None),
        ] {
            assert_eq!(table.find(name).copied(), found, "{name}");
        }
    }

    #[test]
    fn the_first_of_a_name_stays() {
        let mut table = ByName::default();
        table.add("a", 1);
        table.add("A", 2);
        assert_eq!(table.find("a"), Some(&1));
    }

    proptest! {
        #[test]
        fn a_wildcard_covers_one_label_and_no_more(labels in prop::collection::vec("[a-z]{1,5}", 1..5)) {
            let table = table(&["*.example.com"]);
            let name = format!("{}.example.com", labels.join("."));
            prop_assert_eq!(table.find(&name).is_some(), labels.len() == 1);
        }
    }
}
