//! A worker in front of somebody else's server: the same queue and the same results, whatever the server does.

use std::sync::Arc;

use ternfleet_proto::message::FailureCode;
use ternfleet_tests::upstream::{Fault, Manner, TestServer, text as text_of};

use super::*;

fn served(server: &TestServer) -> Options {
    let options = options("openai");
    Options { upstream: server.url(), checkpoint_tokens: 8, upstream_silence_s: 2, ..options }
}

/// A greedy completion of a prompt of four bytes.
fn asked(beat: &Heartbeat, index: u32, epoch: u32, tokens: u32) -> Work {
    let mut work = work(&beat.worker, index, epoch, tokens, Lane::Batch);
    work.model_digest.clone_from(&beat.model_digest);
    work.numerics.clone_from(&beat.numerics);
    if let Input::Inline(generation) = &mut work.input {
        generation.sampling.temperature = 0.0;
        generation.stream = false;
    }
    work
}

struct Stage {
    nats: NatsServer,
    desk: Desk,
    server: TestServer,
    beat: Heartbeat,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Stage {
    async fn set(manner: Manner) -> anyhow::Result<Stage> {
        let (nats, server) = (NatsServer::start()?, TestServer::start(manner).await?);
        let mut desk = Desk::open(&nats).await?;
        let (shutdown, running) = start_worker(nats.bus().await?, served(&server));
        let worker = desk.welcome(&[]).await?;
        let beat = desk.beat(|beat| beat.worker == worker).await?;
        Ok(Stage { nats, desk, server, beat, shutdown, running })
    }

    async fn hand(&self, work: Work) -> anyhow::Result<()> {
        hand(&self.desk, &work, &self.beat.worker).await
    }

    async fn end(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.running).await??
    }
}

async fn hand(desk: &Desk, work: &Work, worker: &WorkerId) -> anyhow::Result<()> {
    let id = Some(table::work_message_id(&work.job, work.epoch));
    let how = Publish { message_id: id, ..Publish::default() };
    desk.bus.publish(&table::work(0, worker, Lane::Batch), codec::encode(work), how).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_asked_what_it_can_do_and_answers_as_an_engine_does() -> anyhow::Result<()> {
    for ids in [true, false] {
        let mut stage = Stage::set(Manner { ids, ..Manner::default() }).await?;
        let beat = &stage.beat;
        assert_eq!((beat.model.as_str(), beat.context_tokens, beat.slots), ("letters", 4096, SLOTS as u32));
        assert_eq!(beat.numerics, "vllm/1.2/default/unknown");
        let abilities = beat.abilities;
        assert!(abilities.chat && abilities.completions && !abilities.deterministic, "{abilities:?}");
        assert_eq!((abilities.token_ids, abilities.id_prompts), (ids, ids));
        assert!(!abilities.schemas && !abilities.tools && !abilities.logprobs && !abilities.choices);
        for index in 0..20 {
            stage.hand(asked(&stage.beat, index, 1, 30)).await?;
        }
        for result in stage.desk.results(20).await? {
            assert_eq!(text(&result), text_of(u64::from(result.job.index), 4, 30));
            assert_eq!((result.usage.prompt_tokens, result.usage.completion_tokens), (4, 30));
            assert!(result.nondeterministic && result.line.model.as_deref() == Some("letters"));
        }
        stage.desk.until_the_queue_holds(0).await?;
        let beat = stage.desk.beat(|beat| beat.counters.jobs_done == 20).await?;
        assert_eq!((beat.counters.decode_tokens, beat.counters.prefill_tokens), (600, 80));
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_of_a_server_ends_in_the_answer_or_in_the_right_code() -> anyhow::Result<()> {
    let stage = Stage::set(Manner::default()).await?;
    // What passes costs a wait, and no attempt.
    let passing = [
        Fault::Busy,
        Fault::Failing,
        Fault::NoJson,
        Fault::NoChoices,
        Fault::OddReason,
        Fault::Half(0),
        Fault::Half(5),
        Fault::NoEnd(5),
        Fault::Error(5),
    ];
    for (index, fault) in (0u32..).zip(passing) {
        stage.server.will([fault]);
        stage.hand(asked(&stage.beat, index, 1, 20)).await?;
        let results = stage.desk.results(index as usize + 1).await?;
        assert_eq!(text(&results[index as usize]), text_of(u64::from(index), 4, 20), "{fault:?}");
    }
    // What a request is to blame for is its answer.
    stage.server.will([Fault::TooLong]);
    stage.hand(asked(&stage.beat, 20, 1, 20)).await?;
    // What happens each time is a fault of this worker, as far as it can see.
    let results = stage.desk.results(passing.len() + 1).await?;
    let Outcome::Failed(failure) = &results[passing.len()].outcome else { bail!("it was refused") };
    assert_eq!(failure.code, FailureCode::PromptTooLong);
    assert!(failure.message.contains("4096 tokens"), "{}", failure.message);
    stage.server.will([Fault::NoJson; 9]);
    stage.hand(asked(&stage.beat, 21, 1, 20)).await?;
    let results = stage.desk.results(passing.len() + 2).await?;
    let Outcome::Failed(failure) = &results[passing.len() + 1].outcome else { bail!("it never works") };
    assert_eq!(failure.code, FailureCode::WorkerFault);
    assert!(failure.message.contains("no JSON"), "{}", failure.message);
    stage.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_server_a_worker_gives_its_jobs_back_and_takes_none_until_it_returns()
-> anyhow::Result<()> {
    for hangs in [false, true] {
        let step = Duration::from_millis(20);
        let mut stage = Stage::set(Manner { step, ..Manner::default() }).await?;
        for index in 0..SLOTS as u32 {
            stage.hand(asked(&stage.beat, index, 1, 300)).await?;
        }
        stage.desk.beat(|beat| beat.running.iter().filter(|r| r.generated > 20).count() == SLOTS).await?;
        if hangs {
            // What streams already goes on; what is asked from now on says nothing.
            stage.server.hang(true);
            stage.desk.beat(|beat| beat.counters.jobs_done == SLOTS as u64).await?;
            stage.hand(asked(&stage.beat, 10, 1, 300)).await?;
        } else {
            stage.server.die().await;
        }
        stage.desk.beat(|beat| beat.state == WorkerState::Calibrating && beat.running.is_empty()).await?;
        let (index, jobs) = if hangs { (10, SLOTS + 1) } else { (0, SLOTS) };
        let checkpoint = stage.desk.checkpoint(index).await?.context("a claim")?;
        assert!(checkpoint.released, "the attempt does not count");
        assert!(hangs || checkpoint.generated.len() > 10, "{}", checkpoint.generated.len());
        if hangs {
            stage.server.hang(false);
        } else {
            stage.server.revive().await?;
        }
        // The messages have gone back to the queue, and come again.
        for result in stage.desk.results(jobs).await? {
            let seed = u64::from(result.job.index);
            assert_eq!(text(&result), text_of(seed, 4, 300), "as without the interruption");
            assert!(result.usage.repeated_tokens < 20, "{:?}", result.usage);
        }
        stage.desk.beat(|beat| beat.state == WorkerState::Ready).await?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_changes_under_its_name_ends_the_worker() -> anyhow::Result<()> {
    let Stage { desk: _desk, server, running, nats: _nats, .. } = Stage::set(Manner::default()).await?;
    server.change();
    let ended = tokio::time::timeout(Duration::from_secs(20), running).await??;
    let said = ended.unwrap_err().to_string();
    assert!(said.contains("not the one that it was"), "{said}");
    Ok(())
}

/// A job is begun by one worker, and continued by another one by what the server can: by ids, by text, or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_is_continued_by_ids_or_by_text_or_begun_again_and_booked() -> anyhow::Result<()> {
    let step = Duration::from_millis(20);
    for (ids, temperature, stop, continued) in [
        (true, 0.0, None, true),
        (true, 1.0, None, true),
        (true, 0.0, Some("0"), false),
        (false, 0.0, None, true),
        (false, 1.0, None, false),
    ] {
        let mut stage = Stage::set(Manner { ids, step, ..Manner::default() }).await?;
        let of_job = |epoch| {
            let mut work = asked(&stage.beat, 1, epoch, 200);
            if let Input::Inline(generation) = &mut work.input {
                generation.sampling.temperature = temperature;
                generation.stop.extend(stop.map(str::to_owned));
            }
            work
        };
        let (first, mut second) = (of_job(1), of_job(2));
        stage.hand(first).await?;
        stage.desk.beat(|beat| beat.running.iter().any(|running| running.generated > 40)).await?;
        // It ends without a word, as a process does that is killed.
        stage.running.abort();
        let bus: Arc<dyn Bus> = stage.nats.bus().await?;
        let (shutdown, running) = start_worker(bus, served(&stage.server));
        let worker = stage.desk.welcome(std::slice::from_ref(&stage.beat.worker)).await?;
        second.tag = KEY.sign(&second.job, second.epoch, &worker);
        hand(&stage.desk, &second, &worker).await?;
        let result = stage.desk.results(1).await?.remove(0);
        assert_eq!(text(&result), text_of(1, 4, 200), "as without the kill");
        assert_eq!(result.usage.completion_tokens, 200);
        assert_eq!(result.usage.repeated_tokens == 0, continued, "{:?}", result.usage);
        let asked = stage.server.asked();
        let last = asked.last().context("it was asked")?;
        match (continued, ids) {
            (true, true) => assert!(last["prompt"].as_array().is_some_and(|ids| ids.len() > 40)),
            (true, false) => assert!(last["prompt"].as_str().is_some_and(|text| text.len() > 40)),
            (false, _) => assert_eq!(last["prompt"], "once"),
        }
        shutdown.cancel();
        running.await??;
    }
    Ok(())
}
