//! A configuration: any text is either refused with something to say, or can be compiled into a
//! snapshot. What is said steers no terminal.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::{
    config::{diagnostic::render, load::parse},
    controller::publish::Publisher,
};

fuzz_target!(|text: &str| {
    let said = match parse("tidegate.toml", text) {
        Ok((config, warnings)) => {
            let _compiled = Publisher::new(&config);
            render(&warnings)
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a word");
            render(&errors)
        }
    };
    assert!(!said.contains(|c: char| c.is_control() && c != '\n' && c != '\t'), "{said:?}");
});
