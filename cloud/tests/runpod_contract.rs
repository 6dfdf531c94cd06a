//! The client against the provider's published text (`runpod/openapi.json`) and what is newer (`runpod/newer.json`):
//! each field that is sent exists, each example parses, the enums agree, unknown words are tolerated.

// Helpers of tests are not marked as tests, so the exception for tests does not reach them.
#![allow(clippy::unwrap_used)]

use serde_json::{Map, Value};
use ternfleet_cloud::runpod::{
    ActionBody, ActionKind, CreateBody, ErrorBody, Level, ListCpus, ListGpus, ListPodBilling, ListPods,
    PodBody, PodStatus,
};
use ternfleet_cloud::{Compute, Hardware, Mount, Order, Tier};

fn text() -> Value {
    serde_json::from_str(include_str!("runpod/openapi.json")).unwrap()
}

fn newer(kind: &str) -> Vec<String> {
    let newer: Value = serde_json::from_str(include_str!("runpod/newer.json")).unwrap();
    newer[kind].as_object().unwrap().keys().cloned().collect()
}

/// All properties of a schema, `$ref` and `allOf` followed.
fn properties(text: &Value, schema: &Value) -> Map<String, Value> {
    let mut all = Map::new();
    if let Some(name) = schema["$ref"].as_str() {
        all.extend(properties(text, text.pointer(&name[1..]).unwrap()));
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        all.extend(properties(text, part));
    }
    all.extend(schema["properties"].as_object().cloned().unwrap_or_default());
    all
}

fn required(text: &Value, schema: &Value) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    if let Some(name) = schema["$ref"].as_str() {
        all.extend(required(text, text.pointer(&name[1..]).unwrap()));
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        all.extend(required(text, part));
    }
    let own = schema["required"].as_array().into_iter().flatten();
    all.extend(own.filter_map(|name| name.as_str().map(str::to_owned)));
    all
}

/// Every key of `sent` is in the schema or in `newer` (as `outer.inner`), and nothing required is missing.
fn stands(text: &Value, schema: &Value, newer: &[String], sent: &Value, path: &str) {
    let known = properties(text, schema);
    for name in required(text, schema) {
        assert!(sent.get(&name).is_some(), "{path}{name} is required and not sent");
    }
    for (name, value) in sent.as_object().unwrap() {
        let full = format!("{path}{name}");
        if newer.contains(&full) {
            continue;
        }
        let inner = known.get(name).unwrap_or_else(|| panic!("{full} does not exist"));
        if value.is_object() && !properties(text, inner).is_empty() {
            stands(text, inner, newer, value, &format!("{full}."));
        }
    }
}

fn orders() -> Vec<Order> {
    let gpu = Order {
        name: "tf-1".to_owned(),
        compute: Compute::Gpu {
            id: "NVIDIA B200".to_owned(),
            count: 1,
            vcpus_min: Some(16),
            memory_gb_min: Some(64),
        },
        tier: Tier::Community,
        data_centers: vec!["US-TX-3".to_owned()],
        image: "ternfleet:1".to_owned(),
        disk_gb: 20,
        env: vec![("A".to_owned(), "b".to_owned())],
        entrypoint: vec!["/bin/sh".to_owned()],
        command: vec!["worker".to_owned()],
        registry: Some("reg_abc".to_owned()),
        ports: vec!["4222/tcp".to_owned()],
        mount: Some(Mount::Persistent { gb: 10, path: "/models".to_owned() }),
    };
    let cpu = Order {
        compute: Compute::Cpu { id: "cpu5c".to_owned(), vcpus: 32 },
        tier: Tier::Secure,
        mount: Some(Mount::Network { volume: "vol_xyz".to_owned(), path: "/models".to_owned() }),
        ..gpu.clone()
    };
    let bare = Order {
        compute: Compute::Gpu { id: "x".to_owned(), count: 2, vcpus_min: None, memory_gb_min: None },
        env: Vec::new(),
        entrypoint: Vec::new(),
        command: Vec::new(),
        registry: None,
        ports: Vec::new(),
        data_centers: Vec::new(),
        mount: None,
        ..gpu.clone()
    };
    vec![gpu, cpu, bare]
}

#[test]
fn each_field_that_is_sent_exists() {
    let text = text();
    let schema = &text["components"]["schemas"]["CreatePodRequest"];
    for order in orders() {
        let sent = serde_json::to_value(CreateBody::of(&order)).unwrap();
        stands(&text, schema, &newer("CreatePodRequest"), &sent, "");
        assert_eq!(
            sent.get("gpu").is_some(),
            sent.get("cpu").is_none(),
            "exactly one of gpu and cpu: {sent}"
        );
        if let Some(older) = CreateBody::of(&order).with_args() {
            let sent = serde_json::to_value(older).unwrap();
            let placement = ["gpu.minVcpuCountPerGpu", "gpu.minRamPerGpu"].map(str::to_owned);
            stands(&text, schema, &placement, &sent, "");
        }
    }
    let action = serde_json::to_value(ActionBody { action: ActionKind::Terminate }).unwrap();
    stands(&text, &text["components"]["schemas"]["PodActionRequest"], &[], &action, "");
}

#[test]
fn the_enums_agree() {
    let text = text();
    let words = |name: &str| -> Vec<String> {
        let words = text["components"]["schemas"][name]["enum"].as_array().unwrap();
        words.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    for word in words("PodStatus") {
        let status = PodStatus::from(word.clone());
        assert!(!matches!(status, PodStatus::Other(_)), "{word} is not known");
    }
    for word in words("AvailabilityLevel") {
        assert!(!matches!(Level::from(word.clone()), Level::Other(_)), "{word} is not known");
    }
    let mut sent: Vec<String> =
        [ActionKind::Start, ActionKind::Stop, ActionKind::Restart, ActionKind::Terminate]
            .into_iter()
            .map(|action| serde_json::to_value(action).unwrap().as_str().unwrap().to_owned())
            .collect();
    let mut theirs = words("PodAction");
    sent.sort();
    theirs.sort();
    assert_eq!(sent, theirs);
    let tiers = words("Cloud");
    for order in orders() {
        if let Some(tier) = serde_json::to_value(CreateBody::of(&order)).unwrap()["cloud"].as_str() {
            assert!(tiers.contains(&tier.to_owned()));
        }
    }
    for query in ["include", "product", "cloud"] {
        let parameters = text["paths"]["/v2/catalog/gpus"]["get"]["parameters"].to_string();
        let defined = text["components"]["parameters"].as_object().unwrap().values();
        assert!(defined.chain([]).any(|parameter| parameter["name"] == query), "{query} in {parameters}");
    }
}

/// The examples of an operation's answer.
fn examples(text: &Value, path: &str, method: &str, status: &str) -> Vec<Value> {
    let answer = &text["paths"][path][method]["responses"][status]["content"]["application/json"];
    let many =
        answer["examples"].as_object().into_iter().flat_map(|map| map.values().map(|e| e["value"].clone()));
    let found: Vec<Value> = many.chain(answer.get("example").cloned()).collect();
    assert!(!found.is_empty(), "{method} {path} {status} has no example");
    found
}

#[test]
fn each_example_parses() {
    let text = text();
    for example in examples(&text, "/v2/pods", "get", "200") {
        let list: ListPods = serde_json::from_value(example).unwrap();
        assert_eq!(list.cursor(), None);
        let pod = list.pods[0].clone().rented();
        assert_eq!(pod.price_usd_micro_per_hour, Some(440_000));
        assert_eq!(pod.created_at_ms, Some(1_780_315_200_000));
        assert_eq!(
            (pod.ports[0].private, pod.ports[0].public, pod.ports[0].ip.as_str()),
            (22, 34446, "195.26.233.3")
        );
    }
    for (path, method, status) in [
        ("/v2/pods", "post", "201"),
        ("/v2/pods/{id}", "get", "200"),
        ("/v2/pods/{id}/action", "post", "200"),
    ] {
        for example in examples(&text, path, method, status) {
            serde_json::from_value::<PodBody>(example).unwrap();
        }
    }
    for example in examples(&text, "/v2/catalog/gpus", "get", "200") {
        let list: ListGpus = serde_json::from_value(example).unwrap();
        let offer = list.gpus[0].clone().offer(Tier::Community).unwrap();
        assert_eq!(
            (offer.unit_price_usd_micro_per_hour, offer.hardware),
            (310_000, Hardware::Gpu { id: list.gpus[0].id.clone(), count_max: 4 })
        );
    }
    for example in examples(&text, "/v2/catalog/cpus", "get", "200") {
        let list: ListCpus = serde_json::from_value(example).unwrap();
        let offer = list.cpus[0].clone().offer();
        let sixteen = Compute::Cpu { id: list.cpus[0].id.clone(), vcpus: 16 };
        assert_eq!(offer.price_of(&sixteen), Ok(40_000 * 16));
    }
    for example in examples(&text, "/v2/billing/pods", "get", "200") {
        let list: ListPodBilling = serde_json::from_value(example).unwrap();
        assert_eq!(list.records[0].clone().bill().unwrap().amount_usd_micro, 12_340_000);
    }
    for example in text["paths"]["/v2/pods"]["post"]["requestBody"]["content"]["application/json"]["examples"]
        .as_object()
        .into_iter()
        .flat_map(|map| map.values())
    {
        let schema = &text["components"]["schemas"]["CreatePodRequest"];
        stands(&text, schema, &[], &example["value"], "");
    }
}

#[test]
fn unknown_words_and_fields_are_tolerated_and_a_stopped_pod_has_no_price() {
    let text = text();
    let mut example = examples(&text, "/v2/pods", "post", "201").remove(0);
    example["status"] = "HIBERNATING".into();
    example["cost"] = 0.0.into();
    example["novelty"] = serde_json::json!({"deep": [1, 2]});
    let pod = serde_json::from_value::<PodBody>(example).unwrap().rented();
    assert_eq!(pod.status, ternfleet_cloud::Status::Other("HIBERNATING".to_owned()));
    assert!(pod.status.is_alive(), "what is not known may still cost money");
    assert_eq!(pod.price_usd_micro_per_hour, None);
}

#[test]
fn newer_fields_of_a_pod_are_read() {
    assert!(newer("Pod").contains(&"gpu.vcpuCount".to_owned()));
    let text = text();
    let mut example = examples(&text, "/v2/pods/{id}", "get", "200").remove(0);
    example["gpu"] = serde_json::json!({"id": "x", "count": 1, "vcpuCount": 28, "memory": 120});
    let pod = serde_json::from_value::<PodBody>(example).unwrap().rented();
    assert_eq!((pod.vcpus, pod.memory_gb), (Some(28), Some(120)));
}

#[test]
fn a_problem_is_read_whatever_is_missing_from_it() {
    for text in ["{}", r#"{"title":"x"}"#, r#"{"title":"x","status":422,"detail":"d","errors":["$: bogus"]}"#]
    {
        serde_json::from_str::<ErrorBody>(text).unwrap();
    }
}
