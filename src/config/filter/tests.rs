//! What filters mean, and what is said about wrong ones.

use super::super::{
    Lead,
    testing::{errors, parsed},
};
use super::*;

fn route(settings: &str) -> String {
    format!("[[routes]]\npath_prefix = '/a'\n{settings}")
}

fn to_web(settings: &str) -> String {
    route(&format!("service = 'web'\n{settings}"))
}

#[test]
fn modifiers_are_prepared() {
    let config = parsed(&to_web(
        "[routes.request_header_modifier]\nset = [{ name = 'X-Env', value = 'canary' }]\n\
         add = [{ name = 'x-b', value = '1' }, { name = 'x-b', value = '2' }]\nremove = ['Cookie']",
    ));
    let modifier = &config.routes[1].filters.request;
    assert_eq!(modifier.set, [(HeaderName::from_static("x-env"), HeaderValue::from_static("canary"))]);
    assert_eq!((modifier.add.len(), modifier.remove.len()), (2, 1));
    assert!(config.routes[1].filters.response.is_empty());
}

#[test]
fn what_tidegate_answers_for_cannot_be_changed() {
    for name in [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "connection",
        "te",
        "upgrade",
        "via",
        "forwarded",
        "X-Forwarded-For",
        "x-forwarded-anything",
    ] {
        for change in [format!("remove = ['{name}']"), format!("set = [{{ name = '{name}', value = 'x' }}]")]
        {
            for table in ["request_header_modifier", "response_header_modifier"] {
                let said = errors(&to_web(&format!("[routes.{table}]\n{change}")));
                assert_eq!(said.len(), 1, "{name}: {said:?}");
                assert!(said[0].contains("cannot be changed"), "{said:?}");
            }
        }
    }
}

#[test]
fn a_field_is_changed_in_one_way() {
    for twice in [
        "set = [{ name = 'a', value = '1' }, { name = 'A', value = '2' }]",
        "set = [{ name = 'a', value = '1' }]\nremove = ['a']",
        "add = [{ name = 'a', value = '1' }]\nremove = ['a']",
    ] {
        let said = errors(&to_web(&format!("[routes.request_header_modifier]\n{twice}")));
        assert_eq!(said, ["the header `a` is changed twice by one route"], "{twice}");
    }
    for (bad, problem) in [
        ("set = [{ name = 'a' }]", "this field needs a name and a value"),
        ("set = [{ name = 'a', value = \"x\\n\" }]", "this cannot be the value of a header"),
        ("remove = ['a b']", "`a b` cannot name a header"),
    ] {
        assert_eq!(errors(&to_web(&format!("[routes.response_header_modifier]\n{bad}"))), [problem]);
    }
}

#[test]
fn a_rewrite_knows_what_was_matched() {
    let of = |keys: &str| parsed(&to_web(&format!("[routes.url_rewrite]\n{keys}"))).routes.remove(1).filters;
    let prefix = of("hostname = 'Inner.Example'\nreplace_prefix_match = '/b/'");
    assert_eq!(prefix.hostname, Some(HeaderValue::from_static("inner.example")));
    assert_eq!(prefix.path, Some(PathRewrite::prefix("/a", "/b")));
    assert_eq!(of("replace_prefix_match = ''").path, Some(PathRewrite::prefix("/a", "/")));
    assert_eq!(of("replace_full_path = '/b/'").path, Some(PathRewrite::Full("/b/".to_owned())));
    for bad in [
        "",
        "hostname = 'a/b'",
        "replace_full_path = 'b'",
        "replace_full_path = '/b?c'",
        "replace_full_path = '/b/../c'",
        "replace_full_path = '/é'",
        "replace_full_path = ''",
        "replace_full_path = '/a'\nreplace_prefix_match = '/b'",
    ] {
        assert_eq!(errors(&to_web(&format!("[routes.url_rewrite]\n{bad}"))).len(), 1, "{bad}");
    }
    let whole = "[[routes]]\nservice = 'web'\npath = '/a'\n[routes.url_rewrite]\nreplace_prefix_match = '/b'";
    assert_eq!(errors(whole), ["there is no prefix to replace: this route matches on a whole path"]);
}

#[test]
fn a_redirect_takes_the_place_of_a_service() {
    let config =
        parsed(&route("[routes.request_redirect]\nscheme = 'https'\nport = 8443\nstatus_code = 308"));
    let Lead::Redirect(redirect) = &config.routes[1].lead else { panic!("{:?}", config.routes[1]) };
    assert_eq!((redirect.scheme, redirect.port, redirect.status.as_u16()), (Some("https"), Some(8443), 308));
    let both = errors(&to_web("[routes.request_redirect]\nscheme = 'https'"));
    assert_eq!(both, ["this route leads to a service and redirects"]);
    for bad in [
        "",
        "scheme = 'ftp'",
        "port = 0",
        "port = 65536",
        "scheme = 'https'\nstatus_code = 304",
        "hostname = 'a.example:80'",
        "replace_full_path = 'x'",
    ] {
        assert_eq!(errors(&route(&format!("[routes.request_redirect]\n{bad}"))).len(), 1, "{bad}");
    }
    for pointless in [
        "url_rewrite = { hostname = 'a' }",
        "timeouts = { idle = '1s' }",
        "response_header_modifier = { remove = ['a'] }",
    ] {
        let said = errors(&route(&format!("request_redirect = {{ scheme = 'https' }}\n{pointless}")));
        assert_eq!(said, ["this route redirects, so there is nothing left for it to change"], "{pointless}");
    }
}

#[test]
fn a_route_may_have_times_of_its_own() {
    let config = parsed(&to_web("timeouts = { response = '5s' }"));
    assert_eq!(config.routes[1].filters.timeouts.response.unwrap().as_secs(), 5);
    assert_eq!(config.routes[1].filters.timeouts.idle, None);
    assert_eq!(errors(&to_web("timeouts = { response = '0s' }")), ["`response` of 0s is too short"]);
}
