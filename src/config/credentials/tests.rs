//! What a file of credentials means, and what is said about a wrong one.

use super::*;
use crate::config::diagnostic::render;

const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn said(text: &str) -> (Vec<Credential>, Vec<Diagnostic>) {
    let mut report = Report::secret("who.toml", text);
    let list = lower(text, &mut report).into_iter().map(|(credential, _)| credential).collect();
    (list, report.into_sorted(Severity::Error))
}

#[test]
fn tokens_and_certificates_have_a_scope_and_may_have_services() {
    let text = format!(
        "[[credentials]]\nname = 'ci'\ntoken_sha256 = '{HASH}'\nscope = 'operate'\nservices = ['web']\n\
         [[credentials]]\nname = 'anna@example.com'\ncertificate = 'spiffe://example.com/anna'\nscope = 'admin'\n"
    );
    let (list, errors) = said(&text);
    assert!(errors.is_empty(), "{}", render(&errors));
    let hash: Vec<u8> =
        (0..64).step_by(2).map(|at| u8::from_str_radix(&HASH[at..at + 2], 16).unwrap()).collect();
    assert_eq!(list[0].proof, Proof::Token(hash.try_into().unwrap()));
    assert_eq!(list[0].services, Some(vec!["web".parse().unwrap()]));
    assert_eq!((list[0].name.as_str(), list[0].scope), ("ci", Scope::Operate));
    let anna = Credential {
        name: "anna@example.com".to_owned(),
        proof: Proof::Certificate("spiffe://example.com/anna".to_owned()),
        scope: Scope::Admin,
        services: None,
    };
    assert_eq!(list[1], anna);
    assert!(Scope::ALL.is_sorted());
    assert_eq!(said(""), (vec![], vec![]));
}

#[test]
fn every_mistake_is_named_and_nothing_is_quoted() {
    let secret = format!("{TOKEN_PREFIX}{HASH}");
    let right = format!("name = 'ci'\ntoken_sha256 = '{HASH}'\nscope = 'read'\n");
    for (keys, problem) in [
        (right.replace("name = 'ci'", ""), "this credential has no `name`"),
        (right.replace("'ci'", "'c i'"), "this cannot be the name of a credential"),
        (right.replace("'ci'", &format!("'{secret}'")), "this cannot be the name of a credential"),
        (right.replace("token_sha256", "#"), "this credential proves nothing"),
        (format!("{right}certificate = 'ci'"), "a credential is a token or a certificate, not both"),
        (right.replace(HASH, &secret), "this is a token itself, not its SHA-256"),
        (right.replace(HASH, &HASH[1..]), "this is not a SHA-256: it has 64 hexadecimal digits"),
        (right.replace(HASH, "hunter2"), "this is not a SHA-256: it has 64 hexadecimal digits"),
        (right.replace("scope = 'read'", "scope = 'write'"), "this is no scope"),
        (right.replace("scope = 'read'", ""), "this credential has no `scope`"),
        (format!("{right}services = ['a b']"), "this cannot name a service"),
        (format!("{right}services = '{secret}'"), "expected an array, found something else"),
        (format!("{right}{secret} = 1"), "unknown key"),
        (
            format!("{right}certificate = '-----BEGIN'").replace("token_sha256", "#"),
            "this is not a name in a certificate",
        ),
        (format!("{right}[[credentials]]\n{right}"), "this is the same token or certificate as on line 1"),
        (format!("{right}x = {secret}"), "this is not TOML: invalid boolean"),
    ] {
        let (_, errors) = said(&format!("[[credentials]]\n{keys}"));
        let problems: Vec<_> = errors.iter().map(|error| error.problem.as_str()).collect();
        assert_eq!(problems, [problem], "{keys}");
        let whole = render(&errors);
        assert!(!whole.contains(&HASH[2..20]) && !whole.contains("hunter2"), "{whole}");
        assert!(whole.contains("| (not shown)"), "{whole}");
    }
}
