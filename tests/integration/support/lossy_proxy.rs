//! A proxy that can lose answers: the request has arrived and been carried
//! out, and who sent it never learns.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Relays to a port of this machine. Ends with the value.
pub(crate) struct LossyProxy {
    address: SocketAddr,
    lose: watch::Sender<()>,
    _relays: JoinSet<()>,
}

impl LossyProxy {
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let lose = watch::Sender::new(());
        let subscribe = lose.clone();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut relays = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let lose = subscribe.subscribe();
                relays.spawn(async move {
                    // However it ends, both connections close.
                    let _ = relay(client, port, lose).await;
                });
            }
        });
        Self { address, lose, _relays: accepting }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// On each connection now open, the next answer is lost and the connection
    /// with it.
    pub(crate) fn lose_answers(&self) {
        self.lose.send_replace(());
    }
}

async fn relay(mut client: TcpStream, port: u16, lose: watch::Receiver<()>) -> io::Result<()> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers = async {
        let mut buffer = [0; 16 * 1024];
        loop {
            let length = from_server.read(&mut buffer).await?;
            if length == 0 || lose.has_changed().unwrap_or(true) {
                return Ok(());
            }
            to_client.write_all(&buffer[..length]).await?;
        }
    };
    tokio::select! {
        ended = io::copy(&mut from_client, &mut to_server) => ended.map(|_| ()),
        ended = answers => ended,
    }
}
