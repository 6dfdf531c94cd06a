//! What users of the Rust client `async-openai` do first, by its own HTTP client: chats, structured output, calls of
//! functions, completions, responses, files and a whole batch.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::time::Duration;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::{ApiErrorResponse, OpenAIError};
use async_openai::types::InputSource;
use async_openai::types::batches::{
    Batch, BatchCompletionWindow, BatchEndpoint, BatchRequest, BatchRequestInput, BatchRequestInputMethod,
    BatchRequestOutput, BatchStatus,
};
use async_openai::types::chat::{
    ChatCompletionMessageToolCalls, ChatCompletionNamedToolChoice, ChatCompletionRequestAssistantMessage,
    ChatCompletionRequestMessage, ChatCompletionRequestToolMessage, ChatCompletionRequestUserMessage,
    ChatCompletionStreamOptions, ChatCompletionTool, ChatCompletionToolChoiceOption, ChatCompletionTools,
    CreateChatCompletionRequest, FinishReason, FunctionObject, Prompt, ResponseFormat,
    ResponseFormatJsonSchema,
};
use async_openai::types::completions::CreateCompletionRequest;
use async_openai::types::embeddings::CreateEmbeddingRequest;
use async_openai::types::files::{
    CreateFileRequest, FileExpirationAfter, FileExpirationAfterAnchor, FileInput, FilePurpose,
    OpenAIFilePurpose,
};
use async_openai::types::responses::{
    CreateResponse, EasyInputMessage, FunctionCallOutput, FunctionCallOutputItemParam, FunctionTool,
    InputItem, InputParam, Item, OutputItem, ResponseStreamEvent, ResponseTextParam, Status,
    TextResponseFormatConfiguration, Tool, ToolChoiceFunction, ToolChoiceParam,
};
use futures::TryStreamExt as _;
use serde_json::{Value, json};

const MODEL: &str = "storyteller";

pub(crate) struct Flow {
    client: Client<OpenAIConfig>,
}

impl Flow {
    pub(crate) fn new(base: &str) -> Flow {
        let config = OpenAIConfig::new().with_api_base(format!("{base}/v1")).with_api_key("unused");
        Flow { client: Client::with_config(config) }
    }

    pub(crate) async fn run(&self) {
        self.models().await;
        self.chats().await;
        self.calls().await;
        self.completions().await;
        self.responses().await;
        self.batch().await;
        self.refusals().await;
    }

    async fn models(&self) {
        let listed = self.client.models().list().await.unwrap();
        assert_eq!(listed.data[0].id, MODEL);
        assert_eq!(self.client.models().retrieve(MODEL).await.unwrap().id, MODEL);
    }

    async fn chats(&self) {
        let request =
            CreateChatCompletionRequest { max_completion_tokens: Some(8), ..chat("Tell me a tale.") };
        let whole = self.client.chat().create(request.clone()).await.unwrap();
        let text = whole.choices[0].message.content.clone().unwrap();
        assert_eq!(whole.choices[0].finish_reason, Some(FinishReason::Length));
        assert_eq!(whole.usage.unwrap().completion_tokens, 8);

        let options = ChatCompletionStreamOptions { include_usage: Some(true), include_obfuscation: None };
        let request = CreateChatCompletionRequest { stream_options: Some(options), ..request };
        let stream = self.client.chat().create_stream(request).await.unwrap();
        let chunks: Vec<_> = stream.try_collect().await.unwrap();
        let deltas =
            chunks.iter().flat_map(|chunk| &chunk.choices).filter_map(|choice| choice.delta.content.clone());
        assert_eq!(deltas.collect::<String>(), text);
        assert_eq!(chunks.last().unwrap().usage.as_ref().unwrap().completion_tokens, 8);

        let format = ResponseFormat::JsonSchema { json_schema: king() };
        let request =
            CreateChatCompletionRequest { response_format: Some(format), ..chat("Describe a king.") };
        let shaped = self.client.chat().create(request).await.unwrap();
        assert_king(shaped.choices[0].message.content.as_deref().unwrap());
    }

    async fn calls(&self) {
        let function = FunctionObject {
            name: "weather".into(),
            description: Some("The weather at a place".into()),
            parameters: Some(weather()),
            strict: Some(true),
        };
        let named = ChatCompletionNamedToolChoice::from("weather");
        let request = CreateChatCompletionRequest {
            tools: Some(vec![ChatCompletionTools::Function(ChatCompletionTool { function })]),
            tool_choice: Some(ChatCompletionToolChoiceOption::Function(named)),
            ..chat("Will it rain?")
        };
        let called = self.client.chat().create(request.clone()).await.unwrap().choices.remove(0);
        assert_eq!((called.finish_reason, &called.message.content), (Some(FinishReason::ToolCalls), &None));
        let calls = called.message.tool_calls.unwrap();
        let ChatCompletionMessageToolCalls::Function(call) = &calls[0] else { panic!("{calls:?}") };
        assert_weather(&call.function.arguments);

        let stream = self.client.chat().create_stream(request.clone()).await.unwrap();
        let chunks: Vec<_> = stream.try_collect().await.unwrap();
        let deltas = chunks
            .iter()
            .flat_map(|chunk| &chunk.choices)
            .filter_map(|choice| choice.delta.tool_calls.clone());
        let arguments = deltas.flatten().filter_map(|delta| delta.function?.arguments).collect::<String>();
        assert_eq!(arguments, call.function.arguments);

        let mut messages = request.messages.clone();
        let asked =
            ChatCompletionRequestAssistantMessage { tool_calls: Some(calls.clone()), ..Default::default() };
        messages.push(asked.into());
        let answer =
            ChatCompletionRequestToolMessage { content: "Rain.".into(), tool_call_id: call.id.clone() };
        messages.push(answer.into());
        let request =
            CreateChatCompletionRequest { messages, max_completion_tokens: Some(8), ..chat("Will it rain?") };
        assert!(self.client.chat().create(request).await.unwrap().choices[0].message.content.is_some());
    }

    async fn completions(&self) {
        let prompts = ["Once upon a time", "The king said"].map(str::to_owned).to_vec();
        let request = CreateCompletionRequest {
            model: MODEL.into(),
            prompt: Prompt::StringArray(prompts),
            max_tokens: Some(6),
            temperature: Some(0.0),
            logprobs: Some(1),
            ..Default::default()
        };
        let whole = self.client.completions().create(request.clone()).await.unwrap();
        let texts: Vec<_> = whole.choices.iter().map(|choice| (choice.index, choice.text.clone())).collect();
        assert_eq!(texts.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(whole.choices[0].logprobs.as_ref().unwrap().tokens.len(), 6);

        let request = CreateCompletionRequest { logprobs: None, ..request };
        let stream = self.client.completions().create_stream(request).await.unwrap();
        let chunks: Vec<_> = stream.try_collect().await.unwrap();
        for (index, text) in texts {
            let parts = chunks.iter().flat_map(|chunk| &chunk.choices).filter(|choice| choice.index == index);
            assert_eq!(parts.map(|choice| choice.text.as_str()).collect::<String>(), text);
        }
    }

    async fn responses(&self) {
        let request = |input: InputParam, max_output_tokens| CreateResponse {
            model: Some(MODEL.into()),
            input,
            max_output_tokens: Some(max_output_tokens),
            temperature: Some(0.0),
            ..Default::default()
        };
        let plain = request("Tell me a tale.".into(), 8);
        let whole = self.client.responses().create(plain.clone()).await.unwrap();
        assert_eq!((&whole.status, whole.usage.as_ref().unwrap().output_tokens), (&Status::Incomplete, 8));
        let stream = self.client.responses().create_stream(plain).await.unwrap();
        let events: Vec<ResponseStreamEvent> = stream.try_collect().await.unwrap();
        let deltas = events.iter().filter_map(|event| match event {
            ResponseStreamEvent::ResponseOutputTextDelta(event) => Some(event.delta.as_str()),
            _ => None,
        });
        assert_eq!(Some(deltas.collect::<String>()), whole.output_text());
        assert!(
            matches!(events.last(), Some(ResponseStreamEvent::ResponseIncomplete(_))),
            "{:?}",
            events.last()
        );

        let format = ResponseTextParam {
            format: TextResponseFormatConfiguration::JsonSchema(king()),
            verbosity: None,
        };
        let shaped = CreateResponse { text: Some(format), ..request("Describe a king.".into(), 60) };
        assert_king(&self.client.responses().create(shaped).await.unwrap().output_text().unwrap());

        let function = FunctionTool {
            name: "weather".into(),
            parameters: Some(weather()),
            strict: Some(true),
            ..Default::default()
        };
        let named = ToolChoiceFunction { name: "weather".into() };
        let calling = CreateResponse {
            tools: Some(vec![Tool::Function(function)]),
            tool_choice: Some(ToolChoiceParam::Function(named)),
            ..request("Will it rain?".into(), 120)
        };
        let called = self.client.responses().create(calling.clone()).await.unwrap();
        let OutputItem::FunctionCall(call) = called.output[0].clone() else { panic!("{:?}", called.output) };
        assert_weather(&call.arguments);
        let stream = self.client.responses().create_stream(calling).await.unwrap();
        let events: Vec<ResponseStreamEvent> = stream.try_collect().await.unwrap();
        let deltas = events.iter().filter_map(|event| match event {
            ResponseStreamEvent::ResponseFunctionCallArgumentsDelta(event) => Some(event.delta.as_str()),
            _ => None,
        });
        assert_eq!(deltas.collect::<String>(), call.arguments);

        // Everything that was said goes back as items.
        let answer = FunctionCallOutputItemParam {
            call_id: Some(call.call_id.clone()),
            output: FunctionCallOutput::Text("Rain.".into()),
            id: None,
            status: None,
            name: None,
            namespace: None,
            caller: None,
        };
        let mut items: Vec<InputItem> = vec![EasyInputMessage::from("Tell me a tale.").into()];
        items.extend(whole.output.into_iter().chain(called.output).map(InputItem::from));
        items.push(Item::FunctionCallOutput(answer).into());
        let told = self.client.responses().create(request(InputParam::Items(items), 8)).await.unwrap();
        assert!(told.output_text().is_some(), "{told:?}");
    }

    async fn batch(&self) {
        let line = |custom_id: &str, body: Value| BatchRequestInput {
            custom_id: custom_id.into(),
            method: BatchRequestInputMethod::POST,
            url: BatchEndpoint::V1ChatCompletions,
            body: Some(body),
        };
        let plain = CreateChatCompletionRequest { max_completion_tokens: Some(8), ..chat("Tell me a tale.") };
        let lines = [
            line("plain", serde_json::to_value(&plain).unwrap()),
            line("wrong", json!({"model": MODEL, "messages": [], "n": 99})),
        ];
        let content: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        let upload = CreateFileRequest {
            file: FileInput {
                source: InputSource::VecU8 {
                    filename: "prompts.jsonl".into(),
                    vec: content.clone().into_bytes(),
                },
            },
            purpose: FilePurpose::Batch,
            expires_after: Some(FileExpirationAfter {
                anchor: FileExpirationAfterAnchor::CreatedAt,
                seconds: 3600,
            }),
        };
        let files = || self.client.files();
        let file = files().create(upload).await.unwrap();
        assert_eq!((file.filename.as_str(), file.bytes), ("prompts.jsonl", Some(content.len() as u32)));
        assert_eq!(file.expires_at, Some(file.created_at + 3600));
        assert_eq!(files().content(&file.id).await.unwrap(), content.as_bytes());

        let request = BatchRequest {
            input_file_id: file.id.clone(),
            endpoint: BatchEndpoint::V1ChatCompletions,
            completion_window: BatchCompletionWindow::W24H,
            metadata: None,
            output_expires_after: None,
        };
        let created = self.client.batches().create(request).await.unwrap();
        let ended = self.ended(&created.id).await;
        assert_eq!(ended.status, BatchStatus::Completed);
        let counts = ended.request_counts.unwrap();
        assert_eq!((counts.total, counts.completed, counts.failed), (2, 1, 1));
        assert!(ended.usage.unwrap().output_tokens > 0);
        assert!(self.client.batches().list().await.unwrap().data.iter().any(|one| one.id == created.id));

        let output = ended.output_file_id.unwrap();
        assert_eq!(files().retrieve(&output).await.unwrap().purpose, OpenAIFilePurpose::BatchOutput);
        let listed = files().list().await.unwrap().data;
        assert!(listed.iter().any(|one| one.id == output) && listed.iter().any(|one| one.id == file.id));
        let answered = self.lines(&output).await;
        let single = self.client.chat().create(plain).await.unwrap();
        let body = &answered[0].response.as_ref().unwrap().body;
        assert_eq!(answered[0].custom_id, "plain");
        assert_eq!(
            body["choices"][0]["message"]["content"].as_str(),
            single.choices[0].message.content.as_deref()
        );
        let failed = self.lines(&ended.error_file_id.unwrap()).await;
        assert_eq!((failed.len(), failed[0].custom_id.as_str()), (1, "wrong"));
        assert!(files().delete(&file.id).await.unwrap().deleted);
    }

    async fn ended(&self, id: &str) -> Batch {
        for _ in 0..600 {
            let batch = self.client.batches().retrieve(id).await.unwrap();
            if !matches!(
                batch.status,
                BatchStatus::Validating | BatchStatus::InProgress | BatchStatus::Finalizing
            ) {
                return batch;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{id} does not end")
    }

    async fn lines(&self, file: &str) -> Vec<BatchRequestOutput> {
        let content = self.client.files().content(file).await.unwrap();
        let text = String::from_utf8(content.to_vec()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
            .collect()
    }

    async fn refusals(&self) {
        let embedding =
            CreateEmbeddingRequest { model: MODEL.into(), input: "x".into(), ..Default::default() };
        assert_eq!(refused(self.client.embeddings().create(embedding).await).status_code, 501);
        let unknown = refused(self.client.batches().retrieve("batch_unknown").await);
        assert_eq!((unknown.status_code.as_u16(), unknown.api_error.code.is_some()), (404, true));
        let wrong = CreateChatCompletionRequest { n: Some(99), ..chat("Tell me a tale.") };
        let wrong = refused(self.client.chat().create(wrong).await);
        assert_eq!((wrong.status_code.as_u16(), wrong.api_error.param.as_deref()), (400, Some("n")));
    }
}

fn chat(text: &str) -> CreateChatCompletionRequest {
    let messages: Vec<ChatCompletionRequestMessage> = ChatCompletionRequestUserMessage::from(text).into();
    CreateChatCompletionRequest {
        model: MODEL.into(),
        messages,
        max_completion_tokens: Some(120),
        temperature: Some(0.0),
        ..Default::default()
    }
}

fn king() -> ResponseFormatJsonSchema {
    let properties =
        json!({"age": {"enum": ["old", "young"]}, "sons": {"type": "integer", "minimum": 0, "maximum": 9}});
    ResponseFormatJsonSchema {
        name: "king".into(),
        description: None,
        schema: json!({"type": "object", "properties": properties, "required": ["age", "sons"], "additionalProperties": false}),
        strict: Some(true),
    }
}

fn assert_king(text: &str) {
    let read: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert!(
        ["old", "young"].map(Value::from).contains(&read["age"]) && read["sons"].as_u64() < Some(10),
        "{read}"
    );
}

fn weather() -> Value {
    let properties =
        json!({"place": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}});
    json!({"type": "object", "properties": properties, "required": ["place", "days"], "additionalProperties": false})
}

fn assert_weather(arguments: &str) {
    let read: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{arguments}: {error}"));
    assert!(["Oslo", "Rome"].map(Value::from).contains(&read["place"]), "{read}");
    assert!((1..=9).map(Value::from).any(|days| days == read["days"]), "{read}");
}

fn refused<T: std::fmt::Debug>(answer: Result<T, OpenAIError>) -> ApiErrorResponse {
    match answer {
        Err(OpenAIError::ApiError(error)) if !error.api_error.message.is_empty() => error,
        other => panic!("{other:?}"),
    }
}
