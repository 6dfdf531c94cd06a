//! What grammars take, and what is refused of them.

use std::sync::Arc;

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

fn schema(text: &str) -> Grammar {
    Grammar::JsonSchema(text.to_owned())
}

fn fault(text: &str) -> String {
    schema(text).check().unwrap_err().to_string()
}

#[test]
fn what_is_not_kept_to_is_refused_by_name_and_place() {
    for (text, wanted) in [
        (
            r#"{"properties":{"a b":{"items":{"uniqueItems":true}}}}"#,
            ["`uniqueItems`", "#/properties/a b/items"],
        ),
        (
            r##"{"$defs":{"x":{"contains":{}}},"properties":{"y":{"$ref":"#/$defs/x"}}}"##,
            ["`contains`", "#/$defs/x"],
        ),
        (r#"{"not":{"pattern":"a"}}"#, ["`not`", "`pattern`"]),
        (r#"{"items":{"not":{"type":["null","text"]}}}"#, ["unknown type \"text\"", "#/items/not/type"]),
        (r#"{"anyOf":[{},{"format":"iri"}]}"#, ["`format`", "#/anyOf/1/format"]),
        (r#"{"properties":{"a":{"$ref":"other.json#/b"}}}"#, ["`$ref`", "another document"]),
        (r##"{"properties":{"a":{"$ref":"#/b"}}}"##, ["points to nothing", "#/properties/a/$ref"]),
        (r#"{"properties":{"a":{"type":"text"}}}"#, ["unknown type \"text\"", "#/properties/a/type"]),
        (r#"{"allOf":[{"propertyNames":{"minimum":3}}]}"#, ["`propertyNames`", "#/allOf/0/propertyNames"]),
    ] {
        let fault = fault(text);
        assert!(wanted.iter().all(|part| fault.contains(part)), "{text}: {fault}");
    }
}

#[test]
fn hostile_schemas_meet_limits_and_leave_the_machine_alone() {
    let deep = |n: usize| format!("{}{{}}{}", r#"{"items":"#.repeat(n), "}".repeat(n));
    assert_eq!(schema(&deep(60)).check(), Ok(()));
    assert!(matches!(schema(&deep(70)).check(), Err(Fault::TooMuch { .. })));
    assert!(matches!(schema(&deep(20_000)).check(), Err(Fault::TooMuch { .. })));
    assert!(matches!(
        schema(&format!("{{\"title\":{:?}}}", "x".repeat(300_000))).check(),
        Err(Fault::TooMuch { .. })
    ));
    // A long chain of references, each of which is compiled within the one before.
    let chain = |n: usize| {
        let links =
            (0..n).map(|i| format!(r##""{i}":{{"items":{{"$ref":"#/$defs/{}"}},"type":"array"}},"##, i + 1));
        format!(r##"{{"$ref":"#/$defs/0","$defs":{{{}"{n}":{{}}}}}}"##, links.collect::<String>())
    };
    assert_eq!(schema(&chain(900)).check(), Ok(()));
    assert!(matches!(schema(&chain(3000)).check(), Err(Fault::TooMuch { .. })));
    // Cases that multiply with one another.
    let cases = r#"{"anyOf":[{"required":["a"]},{"required":["b"]},{"required":["c"]},{"required":["d"]}]},"#
        .repeat(12);
    // What the caller is promised, and a second for a busy machine.
    let within = limits::COMPILE + std::time::Duration::from_secs(1);
    let begun = std::time::Instant::now();
    let outcome = schema(&format!(r#"{{"allOf":[{}]}}"#, cases.trim_end_matches(','))).check();
    println!("{outcome:?} in {:?}", begun.elapsed());
    assert!(begun.elapsed() < within);
    for text in [
        r##"{"$ref":"#"}"##,
        r##"{"allOf":[{"$ref":"#"}]}"##,
        r##"{"not":{"$ref":"#"}}"##,
        r#"{"type":"string","pattern":"(a{1,1000}){1,1000}"}"#,
        r#"{"type":"string","pattern":"((((a*)*)*)*)*b"}"#,
        r#"{"type":"array","minItems":100000000}"#,
        r#"{"type":"string","minLength":100000000}"#,
        r#"{"type":"integer","multipleOf":1e-300}"#,
        r#"{"enum":[]}"#,
        r#"{"properties":{"a":false},"required":["a"]}"#,
    ] {
        let begun = std::time::Instant::now();
        println!("{text}: {:?} in {:?}", schema(text).check(), begun.elapsed());
        assert!(begun.elapsed() < within, "{text}");
    }
}

#[test]
fn a_thousand_lines_with_one_schema_compile_once_and_so_many_are_kept() {
    let compiler = Arc::new(Compiler::of(&vocabulary::bytes(), 256).unwrap());
    let asked = schema(r#"{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}"#);
    let first = compiler.constraint(asked.clone());
    for _ in 0..1000 {
        let next = compiler.constraint(asked.clone());
        assert!(Arc::ptr_eq(&first, &next));
        next.matcher(&[]).unwrap();
    }
    let others = |n: usize| (0..n).map(|i| drop(compiler.constraint(Grammar::Choice(vec![i.to_string()]))));
    others(limits::KEPT - 1).for_each(drop);
    assert!(Arc::ptr_eq(&first, &compiler.constraint(asked.clone())), "the latest are kept");
    others(limits::KEPT).for_each(drop);
    assert!(!Arc::ptr_eq(&first, &compiler.constraint(asked)), "and no more than so many");
    // Nobody but this test has the first one now.
    assert_eq!(Arc::strong_count(&first), 1);
}

#[test]
fn answers_are_plain_json_in_the_order_of_the_schema() {
    let text = r#"{"x-guidance":{"whitespace_flexible":true,"lenient":true},"type":"object",
        "properties":{"z":{"type":"integer"},"a":{"type":"string"}},"required":["z","a"],"additionalProperties":false}"#;
    let recogniser = schema(text).recogniser().unwrap();
    for (answer, takes) in [
        (r#"{"z":1,"a":"é"}"#, true),
        (r#"{"a":"é","z":1}"#, false),
        (r#"{"z": 1,"a":"é"}"#, false),
        (r#"{"z":1,"a":"é"} "#, false),
        (r#"{"z":1,"a":"#, false),
        (r#"{"z":1}"#, false),
        ("", false),
    ] {
        assert_eq!(recogniser.takes(answer), takes, "{answer}");
    }
}

/// Keywords that the crate does not have, in other words: what is taken and what is not.
#[test]
fn negations_conditions_and_dependencies_hold() {
    for (text, taken, refused) in [
        (r#"{"not":{"type":["object","array"]}}"#, &["3", "\"a\"", "null"][..], &["{}", "[]"][..]),
        (r#"{"type":"object","not":{"required":["a"]}}"#, &["{}", r#"{"b":1}"#], &[r#"{"a":1}"#]),
        (
            r#"{"type":"string","not":{"enum":["ab","a",""]}}"#,
            &["\"b\"", "\"abc\"", "\"ac\""],
            &["\"a\"", "\"ab\"", "\"\""],
        ),
        (r#"{"type":"number","not":{"enum":[1,3.5]}}"#, &["2", "0", "4"], &["1", "3.5"]),
        (r#"{"type":"integer","not":{"minimum":3}}"#, &["2", "-9"], &["3", "4"]),
        (
            r#"{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"}},"additionalProperties":false,
                "dependentRequired":{"a":["b"]}}"#,
            &["{}", r#"{"b":1}"#, r#"{"a":1,"b":2}"#],
            &[r#"{"a":1}"#],
        ),
        (
            r#"{"type":"object","properties":{"k":{"enum":["x","y"]},"n":{"type":"integer"}},"required":["k"],
                "additionalProperties":false,"if":{"properties":{"k":{"const":"x"}}},"then":{"required":["n"]}}"#,
            &[r#"{"k":"y"}"#, r#"{"k":"x","n":1}"#, r#"{"k":"y","n":1}"#],
            &[r#"{"k":"x"}"#, "{}"],
        ),
        (r#"{"type":"object","propertyNames":{"pattern":"^a"}}"#, &["{}", r#"{"ab":1}"#], &[r#"{"b":1}"#]),
        (r#"{"type":"object","propertyNames":{"maxLength":2}}"#, &[r#"{"ab":1}"#], &[r#"{"abc":1}"#]),
        (r#"{"type":"array","uniqueItems":true,"maxItems":1}"#, &["[]", "[1]"], &["[1,1]"]),
        (r#"{"type":"number","minimum":1,"exclusiveMinimum":true}"#, &["2"], &["1"]),
        (r#"{"items":[{"type":"integer"}],"additionalItems":false}"#, &["[1]", "[]"], &["[1,2]", "[\"a\"]"]),
    ] {
        let recogniser = schema(text).recogniser().unwrap_or_else(|fault| panic!("{text}: {fault}"));
        for answer in taken {
            assert!(recogniser.takes(answer), "{text} takes {answer}");
        }
        for answer in refused {
            assert!(!recogniser.takes(answer), "{text} does not take {answer}");
        }
    }
}

fn calls(must: bool, several: bool, text: Option<Grammar>) -> Calls {
    let function = |name: &str, parameters: Option<&str>| Callable {
        name: name.to_owned(),
        parameters: parameters.map(str::to_owned),
    };
    let weather = r##"{"type":"object","properties":{"place":{"type":"string"},"days":{"$ref":"#/$defs/n"}},
        "required":["place"],"additionalProperties":false,"$defs":{"n":{"type":"integer","minimum":1,"maximum":9}}}"##;
    let functions = vec![function("weather", Some(weather)), function("weather_now", None)];
    Calls { format: crate::ToolFormat::Hermes, functions, must, several, text: text.map(Box::new) }
}

fn call(name: &str, arguments: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
}

#[test]
fn calls_keep_to_their_frame_and_to_the_schema_of_their_function() {
    let good = [
        call("weather", r#"{"place": "Köln }\"<tool_call>", "days": 3}"#),
        call("weather", r#"{"place": ""}"#),
        call("weather_now", "{}"),
    ];
    let bad = [
        call("weather", "{}"),
        call("weather", r#"{"place": "a", "days": 10}"#),
        call("weather", r#"{"place":"a"}"#),
        call("weather_now", r#"{"place": "a"}"#),
        call("rain", "{}"),
        "<tool_call>\n".to_owned(),
        "<tool_call>{}".to_owned(),
    ];
    for (must, several) in [(true, true), (true, false), (false, true), (false, false)] {
        let recogniser = Grammar::Calls(calls(must, several, None)).recogniser().unwrap();
        let takes = |text: &str| recogniser.takes(text);
        for one in &good {
            assert!(takes(one), "{one}");
            assert!(!takes(&format!("{one}\n")) && !takes(&format!("{one} and more")), "{one}");
            assert_eq!(takes(&format!("Let me look: < <tool\n{one}")), !must, "{one}");
            assert_eq!(takes(&format!("{one}\n{}", good[2])), several, "{one}");
            assert_eq!(takes(&format!("{one}\n{}\n{one}", good[2])), several, "{one}");
        }
        for one in &bad {
            assert!(
                !takes(one) && !takes(&format!("a {one}")) && !takes(&format!("{}\n{one}", good[0])),
                "{one}"
            );
        }
        for text in ["", "No tool is needed.", "a < b\n<tool_call", "größe <tool_call\n>"] {
            assert_eq!(takes(text), !must, "{text:?}");
        }
    }
}

#[test]
fn a_text_beside_calls_may_be_held_to_json() {
    let text = schema(
        r#"{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false}"#,
    );
    let recogniser = Grammar::Calls(calls(false, true, Some(text))).recogniser().unwrap();
    for (answer, takes) in [
        (r#"{"a":1}"#.to_owned(), true),
        (call("weather_now", "{}"), true),
        (format!(r#"{{"a":1}}{}"#, call("weather_now", "{}")), false),
        ("words".to_owned(), false),
        (String::new(), false),
    ] {
        assert_eq!(recogniser.takes(&answer), takes, "{answer}");
    }
}

#[test]
fn functions_that_cannot_be_kept_to_are_refused_by_name_and_place() {
    let of = |parameters: &str| {
        let functions = vec![Callable { name: "f".into(), parameters: Some(parameters.to_owned()) }];
        Grammar::Calls(Calls { functions, ..calls(true, false, None) })
    };
    for (parameters, wanted) in [
        (
            r#"{"properties":{"a":{"uniqueItems":true}}}"#,
            &["`uniqueItems`", "the parameters of \"f\", #/properties/a"][..],
        ),
        (r#"{"type":"string"}"#, &["the parameters of \"f\" must have the type object"]),
        ("false", &["\"f\""]),
        (r#"{"properties":{"a":{"type":"text"}}}"#, &["unknown type \"text\"", "the parameters of \"f\""]),
    ] {
        let fault = of(parameters).check().unwrap_err().to_string();
        assert!(wanted.iter().all(|part| fault.contains(part)), "{parameters}: {fault}");
    }
    assert_eq!(of(r##"{"$ref":"#/$defs/o","$defs":{"o":{"type":"object"}}}"##).check(), Ok(()));
    assert_eq!(of("{}").check(), Ok(()));
    let many = (0..129).map(|n| Callable { name: format!("f{n}"), parameters: None }).collect();
    assert!(matches!(
        Grammar::Calls(Calls { functions: many, ..calls(true, true, None) }).check(),
        Err(Fault::TooMuch { most: 128, .. })
    ));
}
