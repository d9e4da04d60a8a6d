//! Documents and streams while something below them fails: never a part, and
//! never text that was not looked through for everything.

use std::time::Duration;

use tonic::{Code, Status};

use super::support::{
    documents::{Redacted, check_json, open, prepare, redact, render_text},
    platform::{Client, Platform, Replica, assert_refused, assert_unavailable, create, reason},
    raw_redis::RawRedis,
};

const ONE: &str = "first-value-4f9d";
const TWO: &str = "second-value-77a1";

struct Setting {
    platform: Platform,
    replica: Replica,
    people: Client,
    reader: Client,
}

impl Setting {
    async fn start() -> Self {
        let platform = Platform::start().await;
        let replica = platform.replica().await;
        let mut people = platform.client(&replica, "platform").await;
        for workspace in ["ws", "other"] {
            people.create_secret(create(workspace, "ONE", ONE)).await.unwrap();
            people.create_secret(create(workspace, "TWO", TWO)).await.unwrap();
        }
        let reader = platform.client(&replica, "executor").await;
        Self { platform, replica, people, reader }
    }

    /// A replica that knows no data key and no value.
    async fn cold(&mut self) {
        self.replica = self.platform.replica().await;
        self.people = self.platform.client(&self.replica, "platform").await;
        self.reader = self.platform.client(&self.replica, "executor").await;
    }

    async fn renders(&mut self, workspace: &str) {
        let answer = self.reader.render_template(render_text(workspace, "{{secrets.ONE}}")).await;
        assert_eq!(answer.unwrap().get_ref().rendered, ONE);
    }

    async fn redact(&mut self, names: &[&str]) -> Result<Redacted, Status> {
        redact(&mut self.reader, open("ws", names), &[ONE.as_bytes(), TWO.as_bytes()]).await
    }

    async fn redacts(&mut self, names: &[&str], expected: &str) {
        assert_eq!(self.redact(names).await.unwrap().text, expected);
    }

    /// Soon after what failed is back, all is as before.
    async fn recovered(&mut self) {
        let back = async {
            while self.redact(&[]).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), back).await.expect("recovers");
        self.redacts(&[], BOTH).await;
        self.renders("ws").await;
    }

    /// All that opens a value is refused for this reason.
    async fn refused(&mut self, code: Code, why: &str) {
        let rendered = self.reader.render_template(render_text("ws", "{{secrets.ONE}}")).await;
        assert_refused(rendered, code, why);
        let document = format!("[\"{ONE}\"]");
        assert_refused(self.people.prepare_template(prepare("ws", &document)).await, code, why);
        for names in [&[][..], &["ONE"]] {
            let status = self.redact(names).await.err().expect(why);
            assert_eq!(reason(&status), (code, why.to_owned()));
        }
    }
}

const BOTH: &str = "{{secrets.ONE}}{{secrets.TWO}}";

#[tokio::test]
async fn without_the_store_nothing_is_told_and_nothing_passed_on() {
    let mut setting = Setting::start().await;
    // What is in memory by then may be outdated and is of no use.
    setting.redacts(&[], BOTH).await;
    setting.redacts(&["ONE"], &format!("{{{{secrets.ONE}}}}{TWO}")).await;
    setting.renders("ws").await;
    setting.platform.redis.kill9();
    setting.refused(Code::Unavailable, "STORE_UNAVAILABLE").await;
    let checked = setting.people.check_references(check_json("ws", "[\"{{secrets.ONE}}\"]")).await;
    assert_unavailable(checked, "STORE_UNAVAILABLE");
    let rendered = setting.reader.render_template(render_text("ws", "{{secrets.ONE}}")).await;
    assert_unavailable(rendered, "STORE_UNAVAILABLE");
    let prepared = setting.people.prepare_template(prepare("ws", "{}")).await;
    assert_unavailable(prepared, "STORE_UNAVAILABLE");
    // Text without references asks nothing of the store.
    let answer = setting.reader.render_template(render_text("ws", "{{other}}")).await.unwrap();
    assert_eq!(answer.get_ref().rendered, "{{other}}");

    setting.platform.redis.restart().await;
    setting.recovered().await;
}

#[tokio::test]
async fn without_the_kms_what_is_known_goes_on() {
    let mut setting = Setting::start().await;
    setting.cold().await;
    setting.renders("other").await;
    setting.platform.kms.stop().await;
    setting.refused(Code::Unavailable, "KMS_UNAVAILABLE").await;
    let cold = setting.reader.render_template(render_text("ws", "{{secrets.ONE}}")).await;
    assert_unavailable(cold, "KMS_UNAVAILABLE");
    // Nothing is opened for this.
    let request = check_json("ws", "[\"{{secrets.ONE}}\"]");
    assert!(setting.people.check_references(request).await.unwrap().get_ref().resolvable);

    setting.renders("other").await;
    let warm = open("other", &[]);
    let done = redact(&mut setting.reader, warm, &[ONE.as_bytes()]).await.unwrap();
    assert_eq!(done.text, "{{secrets.ONE}}");
    let request = prepare("other", &format!("[\"{ONE}\"]"));
    let answer = setting.people.prepare_template(request).await.unwrap();
    assert_eq!(answer.get_ref().json, "[\"{{secrets.ONE}}\"]");

    setting.platform.kms.restart().await;
    setting.recovered().await;
}

#[tokio::test]
async fn one_value_that_does_not_open_fails_all_that_needs_it() {
    let mut setting = Setting::start().await;
    let mut raw = RawRedis::connect(&setting.platform.redis);
    let records = raw.records("ws");
    let mut sealed = records["v/TWO"].clone();
    *sealed.last_mut().unwrap() ^= 1;
    let damages: [(&str, Option<&[u8]>); 3] =
        [("v/TWO", Some(&sealed)), ("v/TWO", None), ("m/TWO", Some(b"revision and garbage"))];
    for (key, damage) in damages {
        match damage {
            Some(record) => raw.set("ws", key, record),
            None => raw.remove("ws", key),
        }
        let loss = || (Code::DataLoss, "RECORD_CORRUPT".to_owned());
        for names in [&[][..], &["TWO"], &["ONE", "TWO"]] {
            let status = setting.redact(names).await.err().unwrap();
            assert_eq!(reason(&status), loss(), "{key}, {names:?}");
        }
        // Also of a template that has nothing to do with it.
        let prepared = setting.people.prepare_template(prepare("ws", "{}")).await;
        assert_refused(prepared, Code::DataLoss, "RECORD_CORRUPT");
        let rendered = render_text("ws", "{{secrets.ONE}} {{secrets.TWO}}");
        let rendered = setting.reader.render_template(rendered).await;
        assert_refused(rendered, Code::DataLoss, "RECORD_CORRUPT");

        setting.renders("ws").await;
        setting.redacts(&["ONE"], &format!("{{{{secrets.ONE}}}}{TWO}")).await;
        raw.restore("ws", &records);
    }
    setting.redacts(&[], BOTH).await;
    // A key that is gone is told as such.
    raw.remove("ws", "k/active");
    setting.cold().await;
    setting.refused(Code::DataLoss, "DATA_KEY_MISSING").await;
}
