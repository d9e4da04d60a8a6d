//! Between the service and its store: a wire that can be cut, go silent or get
//! slow.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Good,
    /// Each piece arrives so much later.
    Slow(Duration),
    /// Nothing arrives, and no end shows: as behind a firewall that has
    /// forgotten the connection.
    Silent,
}

/// Relays to a port of this machine. Ends with the value.
pub(crate) struct Proxy {
    address: SocketAddr,
    wire: watch::Sender<Wire>,
    cuts: watch::Sender<()>,
    _relays: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (wire, cuts) = (watch::Sender::new(Wire::Good), watch::Sender::new(()));
        let (watched, cut) = (wire.clone(), cuts.clone());
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut relays = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                while relays.try_join_next().is_some() {}
                let (wire, mut cut) = (watched.subscribe(), cut.subscribe());
                relays.spawn(async move {
                    // However it ends, both connections close.
                    tokio::select! {
                        _ = relay(client, port, wire) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, wire, cuts, _relays: accepting }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.cuts.send_replace(());
    }
}

async fn relay(client: TcpStream, port: u16, wire: watch::Receiver<Wire>) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        ended = pass(from_client, to_server, wire.clone()) => ended,
        ended = pass(from_server, to_client, wire) => ended,
    }
}

async fn pass(
    mut from: impl io::AsyncRead + Unpin,
    mut to: impl io::AsyncWrite + Unpin,
    mut wire: watch::Receiver<Wire>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        let how = *wire.borrow_and_update();
        match how {
            Wire::Good => {}
            Wire::Slow(delay) => tokio::time::sleep(delay).await,
            // What was sent meanwhile never arrives; nor does an end.
            Wire::Silent => return std::future::pending().await,
        }
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length]).await?;
    }
}
