//! What somebody probably meant, where a word is not among those that are known.

/// Largest edit distance at which a word is suggested (cargo's figure).
const MAX_DISTANCE: usize = 3;
/// Most characters that a list of everything allowed may have; a longer one is noise.
const MAX_LIST: usize = 100;

/// A remedy for a word that is not among `allowed`: the nearest, else all of them if they are few,
/// else silence. `kind` is what they are, in the plural.
pub(super) fn suggest(word: &str, allowed: &[&str], kind: &str) -> Option<String> {
    if let Some(nearest) = nearest(word, allowed) {
        return Some(format!("did you mean `{nearest}`?"));
    }
    let list = allowed.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    (!list.is_empty() && list.len() <= MAX_LIST).then(|| format!("known {kind}: {list}"))
}

/// The nearest of `allowed`, if it is near. A short word must match in at least half of its
/// letters, or else every name of three letters would be near to every other.
fn nearest<'a>(word: &str, allowed: &[&'a str]) -> Option<&'a str> {
    allowed
        .iter()
        .map(|name| (strsim::osa_distance(word, name), *name))
        .filter(|(distance, name)| {
            let longest = word.chars().count().max(name.chars().count());
            *distance <= MAX_DISTANCE.min(longest / 2)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_if_it_is_near() {
        let allowed = ["stable", "canary", "v1"];
        assert_eq!(nearest("stbale", &allowed), Some("stable"));
        assert_eq!(nearest("canry", &allowed), Some("canary"));
        assert_eq!(nearest("v2", &allowed), Some("v1"));
        assert_eq!(nearest("xy", &allowed), None);
        assert_eq!(nearest("listen", &allowed), None);
    }

    #[test]
    fn few_names_are_listed_and_many_are_not() {
        let listed = Some("known services: `web`, `api`".to_owned());
        assert_eq!(suggest("something", &["web", "api"], "services"), listed);
        let many = "x".repeat(MAX_LIST);
        assert_eq!(suggest("something", &[&many], "services"), None);
        assert_eq!(suggest("something", &[], "services"), None);
    }
}
