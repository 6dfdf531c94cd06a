//! What grammars take, and what is refused of them.

use super::*;

#[test]
fn grammars_that_no_output_belongs_to_are_refused() {
    for grammar in [
        Grammar::JsonSchema("{".into()),
        Grammar::JsonSchema("3".into()),
        Grammar::JsonSchema(r#"{"type":"string","enum":[3]}"#.into()),
        Grammar::Regex("(".into()),
        Grammar::Choice(vec![]),
        Grammar::Choice(vec![String::new()]),
        Grammar::Lark("begin: \"a\"".into()),
    ] {
        println!("{grammar:?}: {}", grammar.check().unwrap_err());
    }
}

#[test]
fn grammars_of_each_kind_are_taken() {
    for grammar in [
        Grammar::JsonObject,
        Grammar::JsonSchema(r#"{"type":"object","properties":{"b":{"type":"integer"},"a":{}}}"#.into()),
        Grammar::Regex("[a-f]{2,9}/x".into()),
        Grammar::Choice(vec!["yes".into(), "no (/never)".into(), "a\nb".into()]),
        Grammar::Lark("start: \"a\" | \"b\" start".into()),
    ] {
        assert_eq!(grammar.check(), Ok(()), "{grammar:?}");
    }
}

#[test]
fn a_stop_text_that_cuts_every_output_is_named() {
    let schema = Grammar::JsonSchema(
        r#"{"type":"object","properties":{"b":{"type":"integer"}},"required":["b"]}"#.into(),
    );
    assert_eq!(schema.check_stops(&["\n".into(), "x".into()]), Ok(()));
    assert!(matches!(schema.check_stops(&["\"b\"".into()]), Err(Fault::Stop { .. })));
    let choice = Grammar::Choice(vec!["yes".into(), "no".into()]);
    assert!(matches!(choice.check_stops(&["o".into()]), Err(Fault::Stop { .. })));
}
