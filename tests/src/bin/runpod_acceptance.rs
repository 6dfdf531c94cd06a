//! `make runpod-acceptance`: what the provider's text leaves open, asked of the provider itself, with one small pod.
//!
//! It rents one CPU pod of 2 vCPUs for a minute or two, prints each call and its answer, and ends by name whatever it
//! has rented, also when a step fails. The key comes from `RUNPOD_API_KEY`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use ternfleet_cloud::http::Secret;
use ternfleet_cloud::runpod::{Options, Runpod};
use ternfleet_cloud::{CloudError, Compute, Hardware, Order, Provider, Rented, Status, Tier, start};
use ternfleet_proto::TimeMs;

const LOOK_EVERY: Duration = Duration::from_secs(2);
const STARTS_WITHIN: Duration = Duration::from_secs(600);
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// Run in the pod: tells what it finds, waits to be seen, and ends the pod with the pod's own key.
const SCRIPT: &str = r#"
echo "acceptance: user $(id -u), $(nproc) CPUs, entry point and command as sent: $0"
echo "acceptance: public $RUNPOD_PUBLIC_IP:$RUNPOD_TCP_PORT_4222"
sleep "$SECONDS_TO_LIVE"
base="${TERNFLEET_RUNPOD_BASE:-https://api.runpod.io}"
printf 'header = "Authorization: Bearer %s"\n' "$RUNPOD_API_KEY" |
  curl --config - --silent --show-error --output /dev/null --write-out 'acceptance: ended by itself: %{http_code}\n' \
    --request DELETE "$base/v2/pods/$RUNPOD_POD_ID"
sleep 600
"#;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let key = std::env::var("RUNPOD_API_KEY").context("RUNPOD_API_KEY is not set")?;
    let base = std::env::var("TERNFLEET_RUNPOD_BASE").ok();
    let mut options = Options::new(Secret::new(key.trim()));
    if let Some(base) = &base {
        options.base.clone_from(base);
    }
    let provider = Runpod::new(options)?;
    let name = format!("tf-acceptance-{}", TimeMs::now().0);
    let outcome = accept(&provider, &name, base.as_deref()).await;
    let cleaned = end(&provider, &name).await;
    outcome.and(cleaned)?;
    println!("everything of {name} is given back");
    Ok(())
}

/// Prints a call and what came of it.
async fn call<T: std::fmt::Debug>(
    what: &str,
    asked: impl Future<Output = Result<T, CloudError>>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    let answer = asked.await;
    match &answer {
        Ok(value) => println!("{what}: {:?}: {value:.400?}", began.elapsed()),
        Err(fault) => println!("{what}: {:?}: {fault}", began.elapsed()),
    }
    answer.with_context(|| what.to_owned())
}

async fn accept(provider: &Runpod, name: &str, base: Option<&str>) -> anyhow::Result<()> {
    let began_at = TimeMs::now();
    let offers = call("GET /v2/catalog", provider.offers()).await?;
    let cpu = offers.iter().find_map(|offer| match &offer.hardware {
        Hardware::Cpu { id, .. } if offer.tier == Tier::Secure => Some((id.clone(), offer)),
        _ => None,
    });
    let (id, offer) = cpu.context("the catalogue has no CPU pods")?;
    let compute = Compute::Cpu { id, vcpus: 2 };
    let quoted = offer.price_of(&compute).map_err(anyhow::Error::msg)?;
    println!("quoted: {quoted} micro-dollars an hour");

    let seconds = std::env::var("ACCEPTANCE_SECONDS").unwrap_or_else(|_| "60".to_owned());
    let mut env = vec![("SECONDS_TO_LIVE".to_owned(), seconds)];
    env.extend(base.map(|base| ("TERNFLEET_RUNPOD_BASE".to_owned(), base.to_owned())));
    let order = Order {
        name: name.to_owned(),
        compute,
        tier: Tier::Secure,
        data_centers: Vec::new(),
        image: start::STOCK_IMAGE.to_owned(),
        disk_gb: 5,
        env,
        entrypoint: vec!["/bin/sh".to_owned(), "-c".to_owned()],
        command: vec![SCRIPT.to_owned(), "acceptance".to_owned()],
        registry: None,
        ports: vec!["4222/tcp".to_owned()],
        mount: None,
    };
    let rented = call("POST /v2/pods", provider.create(&order)).await?;
    let price = rented.price_usd_micro_per_hour;
    ensure!(price.is_none_or(|price| price == quoted), "quoted {quoted}, and the answer says {price:?}");

    let began = Instant::now();
    let shown = wait_for(provider, name, STARTS_WITHIN, |pod| {
        pod.is_some_and(|pod| pod.status == Status::Running && !pod.ports.is_empty())
    })
    .await?;
    println!("runs with a public port after {:?}: {shown:?}", began.elapsed());
    let log = loop {
        let log = call("GET /v2/pods/{id}/logs", provider.log_tail(&rented.id, 20)).await?;
        if log.iter().any(|line| line.contains("acceptance: user")) {
            break log;
        }
        ensure!(began.elapsed() < STARTS_WITHIN, "its log does not show what it says");
        tokio::time::sleep(LOOK_EVERY).await;
    };
    println!("its log: {log:#?}");

    let began = Instant::now();
    wait_for(provider, name, ENDS_WITHIN, |pod| pod.is_none())
        .await
        .context("a pod's own key does not end it")?;
    println!("ended by its own key after {:?}", began.elapsed());
    let bills = call("GET /v2/billing/pods", provider.billing(began_at.0, TimeMs::now().0)).await?;
    let bill = bills.iter().find(|bill| bill.pod == rented.id);
    println!(
        "billed: {}",
        bill.map_or("not yet".to_owned(), |bill| format!("{} micro-dollars", bill.amount_usd_micro))
    );
    Ok(())
}

/// Lists until the pod of that name is as wanted.
async fn wait_for(
    provider: &Runpod,
    name: &str,
    within: Duration,
    wanted: impl Fn(Option<&Rented>) -> bool,
) -> anyhow::Result<Option<Rented>> {
    let began = Instant::now();
    loop {
        let pods = provider.list().await.context("GET /v2/pods")?;
        let pod = pods.into_iter().find(|pod| pod.name == name && pod.status.is_alive());
        if wanted(pod.as_ref()) {
            return Ok(pod);
        }
        if began.elapsed() > within {
            bail!("waited for {within:?} in vain: {pod:?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Ends every pod of the name, and looks until none is left.
async fn end(provider: &Runpod, name: &str) -> anyhow::Result<()> {
    for pod in provider.list().await?.into_iter().filter(|pod| pod.name == name && pod.status.is_alive()) {
        call(&format!("DELETE /v2/pods/{}", pod.id), provider.terminate(&pod.id)).await?;
    }
    let left = wait_for(provider, name, ENDS_WITHIN, |pod| pod.is_none()).await;
    left.map(drop).context("something is still rented: end it on the provider's page")
}
