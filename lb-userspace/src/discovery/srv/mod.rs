//! Endpoints from SRV records (`discovery: { type: srv }`, RFC 2782): the records are asked for, then the addresses of
//! their targets, as far as the answer did not bring them along. `state` decides what follows from the answers.

pub(super) mod state;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::time::sleep;

use self::state::{Answers, State, Step};
use super::answer::{HostAnswer, Services, SrvAnswer};
use super::dns;
use super::feed::Feed;
use super::resolver::{Families, Resolver};
use super::state::Question;
use crate::model::Srv;

/// Tells what DNS says after each refresh; for ever.
pub(super) async fn run(settings: Srv, resolver: Arc<Resolver>, feed: Feed) {
    let started = Instant::now();
    let mut state = State::new(settings);
    let mut noted = None;
    loop {
        let answers = ask(&resolver, &state).await;
        let Step { report, note, wait } = state.absorb(started.elapsed(), answers, fastrand::f64());
        if note != noted {
            if let Some(note) = &note {
                log::warn!("SRV {}: {note}", state.service());
            }
            noted = note;
        }
        feed.tell(report).await;
        sleep(wait).await;
    }
}

/// One refresh.
async fn ask(resolver: &Arc<Resolver>, state: &State) -> Answers {
    let service = resolver.lookup_srv(state.service(), state.known()).await;
    let hosts = match &service {
        SrvAnswer::Records { services, .. } => ask_targets(resolver, services, state.families()).await,
        SrvAnswer::None(_) => BTreeMap::new(),
    };
    Answers { service, hosts }
}

async fn ask_targets(
    resolver: &Arc<Resolver>,
    services: &Services,
    families: Families,
) -> BTreeMap<String, HostAnswer> {
    let mut hosts: Vec<(&str, HostAnswer)> = state::targets(services)
        .into_iter()
        .map(|target| {
            let along = services.along.get(target);
            let v4 = along.and_then(|answer| answer.v4.clone()).filter(|_| families.v4);
            let v6 = along.and_then(|answer| answer.v6.clone()).filter(|_| families.v6);
            (target, HostAnswer { v4, v6, name: None })
        })
        .collect();
    let questions = hosts.iter().enumerate().filter_map(|(index, (target, along))| {
        let missing =
            Families { v4: families.v4 && along.v4.is_none(), v6: families.v6 && along.v6.is_none() };
        let host = (*target).to_owned();
        (missing.v4 || missing.v6).then_some(Question { index, host, families: missing, known: None })
    });
    for (index, answer) in dns::ask(Arc::clone(resolver), questions.collect()).await {
        let (_, host) = &mut hosts[index];
        host.v4 = host.v4.take().or(answer.v4);
        host.v6 = host.v6.take().or(answer.v6);
    }
    hosts.into_iter().map(|(target, answer)| (target.to_owned(), answer)).collect()
}
