//! Asking DNS: the search list, the servers, their attempts, aliases. hickory carries each single query (ids, ports,
//! matching of answers, truncation and TCP).
//!
//! Nothing is cached: each call asks. The order of names, servers and attempts is glibc's, whose rules people write
//! their `resolv.conf` for; one server at a time, so that a failure says which.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::{DnsRequestOptions, Message, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use tokio::time::timeout;

use super::answer::{
    Answer, Failure, FailureKind, Family, HostAnswer, Service, Services, SrvAnswer, unusable,
};
use super::resolv_conf::{ResolvConf, ResolvConfFile};

/// Aliases (CNAME) followed; longer chains are loops or mistakes.
const MAX_ALIASES: usize = 16;

/// Which families to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Families {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

/// Asks the servers of a `resolv.conf`.
pub(super) struct Resolver {
    file: ResolvConfFile,
    /// Of the servers; 53 but in tests.
    port: u16,
    /// Where `rotate` begins next.
    turn: AtomicUsize,
}

/// What one exchange gave, short of a failure.
enum Reply {
    Answers(Message),
    Negative(Answer),
}

impl Resolver {
    pub(super) fn new(file: ResolvConfFile, port: u16) -> Self {
        Self { file, port, turn: AtomicUsize::new(0) }
    }

    /// Asks for the addresses of `host`. `known` is the absolute name that answered last: where it fails, no other
    /// name of the search list may take its place.
    pub(super) async fn lookup(&self, host: &str, families: Families, known: Option<&str>) -> HostAnswer {
        let session = self.session();
        let candidates = session.conf.candidates(host);
        let single = candidates.len() == 1;
        let mut search = Search::new(host, &candidates, known);
        for candidate in candidates {
            let (v4, v6) = tokio::join!(
                session.ask_if(families.v4, &candidate, Family::V4),
                session.ask_if(families.v6, &candidate, Family::V6),
            );
            let answers: Vec<&Answer> = [&v4, &v6].into_iter().flatten().collect();
            let found = answers.iter().any(|answer| matches!(answer, Answer::Records { .. }));
            let name = candidate.to_ascii();
            if found || single {
                return HostAnswer { v4, v6, name: Some(name) };
            }
            if !search.goes_on(&name, &answers) {
                break;
            }
        }
        everywhere(families, &search.outcome())
    }

    /// Asks for the SRV records of `service`; `known` as in [`lookup`](Self::lookup).
    pub(super) async fn lookup_srv(&self, service: &str, known: Option<&str>) -> SrvAnswer {
        let session = self.session();
        let candidates = session.conf.candidates(service);
        let mut search = Search::new(service, &candidates, known);
        for candidate in candidates {
            let name = candidate.to_ascii();
            match session.ask_for(&candidate, RecordType::SRV, Chain::services).await {
                Ok(services) => return SrvAnswer::Records { services, name },
                Err(answer) if !search.goes_on(&name, &[&answer]) => break,
                Err(_) => {}
            }
        }
        SrvAnswer::None(search.outcome())
    }

    fn session(&self) -> Session<'_> {
        Session { conf: self.file.current(), port: self.port, turn: &self.turn }
    }
}

/// What the names of a search list gave so far, while none has records.
struct Search<'k> {
    known: Option<&'k str>,
    failure: Option<Failure>,
    negative: Answer,
}

impl<'k> Search<'k> {
    fn new(host: &str, candidates: &[Name], known: Option<&'k str>) -> Self {
        let failure = candidates.is_empty().then(|| Failure {
            kind: FailureKind::Malformed,
            why: format!("`{host}` is no name that DNS could be asked for"),
        });
        Self { known, failure, negative: Answer::NxDomain }
    }

    /// Takes the answers for one name, none of them records; whether the next name is to be asked for.
    fn goes_on(&mut self, name: &str, answers: &[&Answer]) -> bool {
        let failed = answers.iter().find_map(|answer| match answer {
            Answer::Failure(failure) => Some(failure),
            _ => None,
        });
        match failed {
            Some(new) => {
                self.failure.get_or_insert_with(|| new.clone());
                matches!(new.kind, FailureKind::ServFail | FailureKind::Refused) && self.known != Some(name)
            }
            None => {
                if answers.contains(&&Answer::NoData) {
                    self.negative = Answer::NoData;
                }
                true
            }
        }
    }

    /// A failure on the way counts more than that other names have nothing.
    fn outcome(self) -> Answer {
        self.failure.map_or(self.negative, Answer::Failure)
    }
}

/// The same answer for every family that was asked for.
fn everywhere(families: Families, answer: &Answer) -> HostAnswer {
    let of = |asked: bool| asked.then(|| answer.clone());
    HostAnswer { v4: of(families.v4), v6: of(families.v6), name: None }
}

/// One lookup: the configuration does not change under it.
struct Session<'r> {
    conf: Arc<ResolvConf>,
    port: u16,
    turn: &'r AtomicUsize,
}

impl Session<'_> {
    async fn ask_if(&self, asked: bool, name: &Name, family: Family) -> Option<Answer> {
        if asked { Some(self.ask(name, family).await) } else { None }
    }

    /// The addresses of an absolute name.
    async fn ask(&self, name: &Name, family: Family) -> Answer {
        let kind = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        let addresses = |chain: &Chain, message: &Message| chain.addresses(message, family);
        self.ask_for(name, kind, addresses).await.unwrap_or_else(|answer| answer)
    }

    /// The records of an absolute name, its aliases followed: what `read` makes of them, or an answer without any.
    async fn ask_for<T>(
        &self,
        name: &Name,
        kind: RecordType,
        read: impl Fn(&Chain, &Message) -> Result<Option<T>, String>,
    ) -> Result<T, Answer> {
        let mut chain = Chain::new(name);
        loop {
            let before = chain.names.len();
            let message = match self.exchange(chain.end(), kind).await {
                Err(failure) => return Err(Answer::Failure(failure)),
                Ok(Reply::Negative(answer)) => return Err(answer),
                Ok(Reply::Answers(message)) => message,
            };
            if let Err(why) = chain.follow(&message) {
                return Err(malformed(why));
            }
            match read(&chain, &message) {
                Ok(Some(records)) => return Ok(records),
                Err(why) => return Err(malformed(why)),
                Ok(None) if chain.names.len() == before => {
                    let why = format!("the answer for {} has no {kind} record of it", chain.end());
                    return Err(malformed(why));
                }
                // The server has followed the aliases, and there the name is none (RFC 6604) or has no address.
                Ok(None) if message.metadata.response_code == ResponseCode::NXDomain => {
                    return Err(Answer::NxDomain);
                }
                Ok(None) if message.authorities.iter().any(|record| record.record_type().is_soa()) => {
                    return Err(Answer::NoData);
                }
                Ok(None) => {}
            }
        }
    }

    /// One question, put to the servers in turn until one answers.
    async fn exchange(&self, name: &Name, kind: RecordType) -> Result<Reply, Failure> {
        let mut servers = self.conf.servers.clone();
        if self.conf.rotate {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % servers.len();
            servers.rotate_left(turn);
        }
        let mut failures: Vec<(IpAddr, Failure)> = Vec::new();
        for _ in 0..self.conf.attempts {
            for &server in &servers {
                match self.ask_server(server, name, kind).await {
                    Ok(reply) => return Ok(reply),
                    Err(failure) => {
                        failures.retain(|(of, _)| *of != server);
                        failures.push((server, failure));
                    }
                }
            }
            // Only silence is worth another round.
            if failures.iter().all(|(_, failure)| failure.kind != FailureKind::Timeout) {
                break;
            }
        }
        let kind = failures.iter().map(|(_, failure)| failure.kind).max().unwrap_or(FailureKind::Network);
        let mut whys: Vec<String> = failures
            .iter()
            .map(|(server, failure)| format!("{} {}", SocketAddr::new(*server, self.port), failure.why))
            .collect();
        whys.extend(self.conf.note.as_ref().map(|note| format!("resolv.conf: {note}")));
        Err(Failure { kind, why: whys.join("; ") })
    }

    async fn ask_server(&self, server: IpAddr, name: &Name, kind: RecordType) -> Result<Reply, Failure> {
        match self.try_server(server, name, kind, true).await {
            // A server older than EDNS (RFC 6891, section 7).
            Err(NetError::Dns(DnsError::ResponseCode(ResponseCode::FormErr | ResponseCode::NotImp))) => {
                self.try_server(server, name, kind, false).await
            }
            result => result,
        }
        .map_err(|error| explain(&error, self.conf.timeout))
    }

    async fn try_server(
        &self,
        server: IpAddr,
        name: &Name,
        kind: RecordType,
        edns: bool,
    ) -> Result<Reply, NetError> {
        let query = Query::query(name.clone(), kind);
        let pool = self.pool(server)?;
        let mut options = DnsRequestOptions::default();
        options.use_edns = edns;
        let lookup = pool.lookup(query.clone(), options).first_answer();
        let result = timeout(self.conf.timeout, lookup).await.unwrap_or(Err(NetError::Timeout));
        match result {
            // Over TCP, hickory leaves this to us.
            Ok(response) if response.queries != [query.clone()] => {
                Err(NetError::Message("answers another question"))
            }
            Ok(response)
                if !matches!(response.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
            {
                Err(DnsError::ResponseCode(response.response_code).into())
            }
            Ok(response) => Ok(Reply::Answers(response.into_message())),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                negative(&none, &query).map(Reply::Negative)
            }
            Err(error) => Err(error),
        }
    }

    /// A new one for each exchange: no connection that has gone stale, no memory of earlier answers.
    fn pool(&self, server: IpAddr) -> Result<NameServerPool<TokioRuntimeProvider>, NetError> {
        let mut options = ResolverOpts::default();
        options.timeout = self.conf.timeout;
        options.attempts = 0;
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = self.port;
            connection
        });
        let context = PoolContext::new(options, TlsConfig::new()?);
        let server = NameServerConfig::new(server, true, connections.into());
        Ok(NameServerPool::from_config([server], Arc::new(context), TokioRuntimeProvider::default()))
    }
}

fn negative(none: &NoRecords, query: &Query) -> Result<Answer, NetError> {
    if *none.query != *query {
        return Err(NetError::Message("answers another question"));
    }
    match none.response_code {
        ResponseCode::NXDomain => Ok(Answer::NxDomain),
        // Servers elsewhere, and no SOA: not that there is no data (RFC 2308, section 2.2).
        _ if none.ns.is_some() && none.soa.is_none() => Err(NetError::Message("refers to other servers")),
        _ => Ok(Answer::NoData),
    }
}

fn malformed(why: String) -> Answer {
    Answer::Failure(Failure { kind: FailureKind::Malformed, why })
}

fn explain(error: &NetError, timeout: Duration) -> Failure {
    let (kind, why) = match error {
        NetError::Timeout => {
            (FailureKind::Timeout, format!("did not answer within {}", humantime::format_duration(timeout)))
        }
        NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail)) => {
            (FailureKind::ServFail, "answered SERVFAIL".to_owned())
        }
        NetError::Dns(DnsError::ResponseCode(ResponseCode::Refused)) => {
            (FailureKind::Refused, "answered REFUSED".to_owned())
        }
        NetError::Dns(DnsError::ResponseCode(code)) => (FailureKind::ServFail, format!("answered `{code}`")),
        NetError::Io(error) => (FailureKind::Network, format!("cannot be asked: {error}")),
        other => (FailureKind::Malformed, format!("gave no usable answer: {other}")),
    };
    Failure { kind, why }
}

/// A name and the aliases that it led to.
struct Chain {
    names: Vec<Name>,
    ttl: u32,
}

impl Chain {
    fn new(name: &Name) -> Self {
        Self { names: vec![name.clone()], ttl: u32::MAX }
    }

    fn end(&self) -> &Name {
        &self.names[self.names.len() - 1]
    }

    /// Goes on as far as the message knows aliases.
    fn follow(&mut self, message: &Message) -> Result<(), String> {
        loop {
            let next = message.answers.iter().find_map(|record| match &record.data {
                RData::CNAME(alias) if record.name == *self.end() => Some((alias.0.clone(), record.ttl)),
                _ => None,
            });
            let Some((name, ttl)) = next else { return Ok(()) };
            if self.names.contains(&name) {
                return Err(format!("the aliases (CNAME) of {} are a loop", self.names[0]));
            }
            if self.names.len() > MAX_ALIASES {
                return Err(format!("{} has more than {MAX_ALIASES} aliases (CNAME)", self.names[0]));
            }
            self.names.push(name);
            self.ttl = self.ttl.min(ttl);
        }
    }

    /// The addresses of the chain's end, if the message has records of them.
    fn addresses(&self, message: &Message, family: Family) -> Result<Option<Answer>, String> {
        self.addresses_in(&message.answers, family)
    }

    fn addresses_in(&self, section: &[Record], family: Family) -> Result<Option<Answer>, String> {
        let mut ttl = self.ttl;
        let (mut addresses, mut refused) = (Vec::new(), Vec::new());
        for record in section.iter().filter(|record| record.name == *self.end()) {
            let address = match (&record.data, family) {
                (RData::A(a), Family::V4) => IpAddr::V4(a.0),
                (RData::AAAA(aaaa), Family::V6) => IpAddr::V6(aaaa.0),
                _ => continue,
            };
            ttl = ttl.min(record.ttl);
            if unusable(address).is_some() { refused.push(address) } else { addresses.push(address) }
        }
        for list in [&mut addresses, &mut refused] {
            list.sort_unstable();
            list.dedup();
        }
        match (addresses.is_empty(), refused.first()) {
            (true, None) => Ok(None),
            (true, Some(first)) => {
                let reason = unusable(*first).unwrap_or("not usable");
                Err(format!("{} has no usable address: {first} is {reason}", self.end()))
            }
            (false, _) => {
                Ok(Some(Answer::Records { addresses, ttl: Duration::from_secs(ttl.into()), refused }))
            }
        }
    }
    /// The services of the chain's end, if the message has records of them, with the addresses that came along.
    fn services(&self, message: &Message) -> Result<Option<Services>, String> {
        let mut ttl = self.ttl;
        let mut records = Vec::new();
        for record in message.answers.iter().filter(|record| record.name == *self.end()) {
            let RData::SRV(srv) = &record.data else { continue };
            ttl = ttl.min(record.ttl);
            // Compared in lower case (RFC 4343).
            let target = srv.target.to_ascii().to_ascii_lowercase();
            records.push(Service { priority: srv.priority, weight: srv.weight, port: srv.port, target });
        }
        if records.is_empty() {
            return Ok(None);
        }
        records.sort();
        records.dedup();
        let mut along: BTreeMap<String, HostAnswer> = BTreeMap::new();
        for record in &records {
            let Ok(name) = Name::from_ascii(&record.target) else { continue };
            let chain = Self::new(&name);
            let of = |family| chain.addresses_in(&message.additionals, family).ok().flatten();
            let answer = HostAnswer { v4: of(Family::V4), v6: of(Family::V6), name: None };
            along.insert(record.target.clone(), answer);
        }
        Ok(Some(Services { records, ttl: Duration::from_secs(ttl.into()), along }))
    }
}
