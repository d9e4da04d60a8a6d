//! A proxy to Redis that cuts its client off at a command of choice: before it is
//! delivered, or once it is carried out and before the answer.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Answered by Redis behind the command that is cut: by then it is carried out.
const MARK: &[u8] = b"workflow-secrets-cut-mark";

/// Where to cut.
#[derive(Clone, Default)]
pub(crate) struct Cut {
    /// Commands that hold all of these count, from 0.
    pub(crate) holding: Vec<Vec<u8>>,
    /// The one to cut at.
    pub(crate) at: usize,
    /// Whether it is carried out.
    pub(crate) carried_out: bool,
}

#[derive(Default)]
struct Plan {
    cut: Option<Cut>,
    /// Nothing passes any more.
    held: bool,
}

/// Relays to a port of this machine. Ends with the value.
pub(crate) struct CutProxy {
    address: SocketAddr,
    plan: Arc<Mutex<Plan>>,
    /// The command that was cut at, once it is.
    reached: watch::Sender<Option<Vec<u8>>>,
    _relays: JoinSet<()>,
}

impl CutProxy {
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (plan, reached) = (Arc::<Mutex<Plan>>::default(), watch::Sender::new(None));
        let mut accepting = JoinSet::new();
        let (shared, tell) = (Arc::clone(&plan), reached.clone());
        accepting.spawn(async move {
            let mut relays = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
                    continue;
                };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                // However one ends, the other does too, and with it the connection.
                let commands = commands(from_client, to_server, Arc::clone(&shared), tell.clone());
                let answers = answers(from_server, to_client, Arc::clone(&shared), tell.clone());
                relays.spawn(async move {
                    tokio::select! {
                        _ = commands => {}
                        _ = answers => {}
                    }
                });
            }
        });
        Self { address, plan, reached, _relays: accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Lets all pass until then.
    pub(crate) fn arm(&self, cut: Option<Cut>) {
        self.reached.send_replace(None);
        *lock(&self.plan) = Plan { cut, held: false };
    }

    /// Waits for the cut; the command that it is at.
    pub(crate) async fn reached(&self) -> Vec<u8> {
        let mut reached = self.reached.subscribe();
        reached.wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }
}

fn lock(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap()
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Length of the first command: an array of bulk strings.
fn command_len(bytes: &[u8]) -> Option<usize> {
    let line = |from: usize| {
        let end = from + bytes.get(from..)?.windows(2).position(|pair| pair == b"\r\n")?;
        let number = std::str::from_utf8(&bytes[from + 1..end]).unwrap().parse::<usize>().unwrap();
        Some((number, end + 2))
    };
    let (parts, mut at) = line(0)?;
    for _ in 0..parts {
        let (length, start) = line(at)?;
        at = start + length + 2;
    }
    (at <= bytes.len()).then_some(at)
}

async fn commands(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    plan: Arc<Mutex<Plan>>,
    reached: watch::Sender<Option<Vec<u8>>>,
) -> io::Result<()> {
    let (mut buffer, mut part) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let length = client.read(&mut part).await?;
        if length == 0 {
            return Ok(());
        }
        buffer.extend(&part[..length]);
        while let Some(length) = command_len(&buffer) {
            let command: Vec<_> = buffer.drain(..length).collect();
            let mut here = None;
            {
                let mut plan = lock(&plan);
                if plan.held {
                    continue;
                }
                if let Some(cut) = &mut plan.cut
                    && cut.holding.iter().all(|part| holds(&command, part))
                {
                    match cut.at.checked_sub(1) {
                        Some(left) => cut.at = left,
                        None => here = Some(cut.carried_out),
                    }
                }
                plan.held = here.is_some();
            }
            match here {
                None => server.write_all(&command).await?,
                Some(false) => drop(reached.send_replace(Some(command))),
                Some(true) => {
                    let mark = format!("*2\r\n$4\r\nECHO\r\n${}\r\n", MARK.len());
                    let all = [&command[..], mark.as_bytes(), MARK, b"\r\n"].concat();
                    server.write_all(&all).await?;
                }
            }
        }
    }
}

async fn answers(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    plan: Arc<Mutex<Plan>>,
    reached: watch::Sender<Option<Vec<u8>>>,
) -> io::Result<()> {
    let (mut kept, mut part) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let length = server.read(&mut part).await?;
        if length == 0 {
            return Ok(());
        }
        if lock(&plan).held {
            kept.extend(&part[..length]);
            if holds(&kept, MARK) {
                reached.send_replace(Some(MARK.to_vec()));
            }
        } else {
            client.write_all(&part[..length]).await?;
        }
    }
}
