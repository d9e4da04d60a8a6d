//! A proxy on a network that fails: answers get lost after their requests were
//! carried out, come from somebody else, or nothing goes through any more while
//! nobody closes anything.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// What goes wrong.
#[derive(Clone, Copy, PartialEq)]
enum Loss {
    Nothing,
    /// On each connection open when it begins, the next answer, and the
    /// connection with it.
    Answer,
    /// There, the next answer is this one.
    Instead(&'static [u8]),
    /// Everything, also on new connections, none of which closes.
    Everything,
}

/// Relays to a port of this machine. Ends with the value.
pub(crate) struct LossyProxy {
    address: SocketAddr,
    loss: watch::Sender<Loss>,
    _relays: JoinSet<()>,
}

impl LossyProxy {
    pub(crate) async fn start(port: u16) -> Self {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), port).await
    }

    /// The same on an address of choice.
    pub(crate) async fn start_at(address: SocketAddr, port: u16) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let loss = watch::Sender::new(Loss::Nothing);
        let subscribe = loss.clone();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut relays = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let loss = subscribe.subscribe();
                relays.spawn(async move {
                    // However it ends, both connections close.
                    let _ = relay(client, port, loss).await;
                });
            }
        });
        Self { address, loss, _relays: accepting }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// On each connection now open, the next answer is lost and the connection
    /// with it.
    pub(crate) fn lose_answers(&self) {
        self.loss.send_replace(Loss::Answer);
    }

    /// On each connection now open, the next answer is this one.
    pub(crate) fn answer(&self, instead: &'static [u8]) {
        self.loss.send_replace(Loss::Instead(instead));
    }

    /// From now on nothing goes through, and nobody is told.
    pub(crate) fn swallow(&self) {
        self.loss.send_replace(Loss::Everything);
    }

    /// New connections are well. Those that lost everything stay as they are.
    pub(crate) fn heal(&self) {
        self.loss.send_replace(Loss::Nothing);
    }
}

async fn relay(
    mut client: TcpStream,
    port: u16,
    mut loss: watch::Receiver<Loss>,
) -> io::Result<()> {
    let mut swallowed = loss.clone();
    let swallowed = async {
        let _ = swallowed.wait_for(|loss| *loss == Loss::Everything).await;
    };
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers = async {
        let mut buffer = [0; 16 * 1024];
        loop {
            let length = from_server.read(&mut buffer).await?;
            let lost = loss.has_changed().unwrap_or(true).then(|| *loss.borrow_and_update());
            match lost {
                _ if length == 0 => return Ok(()),
                Some(Loss::Answer) => return Ok(()),
                Some(Loss::Instead(instead)) => to_client.write_all(instead).await?,
                _ => to_client.write_all(&buffer[..length]).await?,
            }
        }
    };
    tokio::select! {
        biased;
        () = swallowed => std::future::pending().await,
        ended = io::copy(&mut from_client, &mut to_server) => ended.map(|_| ()),
        ended = answers => ended,
    }
}
