//! A server as a process: started, asked what it has used, ended.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use crate::support::{
    kms_endpoint::{ACCESS_KEY_ID, REGION},
    platform::Platform,
};

/// What a process has used since it began.
#[derive(Clone, Copy)]
pub(crate) struct Used {
    pub(crate) cpu_micros: f64,
    pub(crate) allocations: u64,
}

/// The tool that a server is to run under, of `LOAD_UNDER`: a role and, after a colon,
/// a command such as `valgrind --tool=callgrind`.
fn looked_at(role: &str) -> Option<String> {
    let under = std::env::var("LOAD_UNDER").ok()?;
    let (of, tool) = under.split_once(':')?;
    (of == role).then(|| tool.to_owned())
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Server {
    /// A role of this very program, with the flags of a replica.
    pub(crate) fn start(role: &str, platform: &Platform, more: &[&str]) -> Self {
        let address = crate::support::platform::free_address();
        let program = std::env::current_exe().unwrap();
        let mut command = match looked_at(role) {
            None => Command::new(&program),
            Some(tool) => {
                let mut words = tool.split_whitespace();
                let mut command = Command::new(words.next().unwrap());
                command.args(words).arg(&program);
                command
            }
        };
        let mut child = command
            .arg(role)
            .args(platform.flags(address))
            .args(more)
            .envs([("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID), ("AWS_SECRET_ACCESS_KEY", "test")])
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_REGION", REGION)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (ask, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { address, child, ask: Some(ask), answers: BufReader::new(answers) }
    }

    pub(crate) fn used(&mut self) -> Used {
        self.ask.as_ref().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let allocations = line.trim().parse().unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Past the name, which may hold blanks: utime and stime are the 14th and
        // 15th fields, in ticks of a hundredth of a second (proc(5)).
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: f64 = ticks.map(|field| field.parse::<f64>().unwrap()).sum();
        Used { cpu_micros: ticks * 10_000.0, allocations }
    }

    /// Resident memory, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends then, and a tool that it runs under has its say.
        drop(self.ask.take());
        let _ = self.child.wait();
    }
}
