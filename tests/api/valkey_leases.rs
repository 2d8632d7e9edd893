//! Replicas that share a bucket and a Valkey all get the same picture. The one that holds the lease calls
//! NVIDIA. It may be killed or suspended, its call may take long, or NVIDIA may refuse the picture. Even
//! then, the other replicas answer soon, and together call NVIDIA at most once more.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    join,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::support::{
    Answer, FakeNvidia, PATIENCE, Replica, Reply, ValkeyServer, embedding, metric,
    nvidia_api::INFER,
    s3::{Fault, FaultProxy, MotoServer},
    tiny, try_picture_number, wait_for,
};

/// The other replicas must answer within this time, even if they wait as long as
/// [`LEASE`] or [`SUSPENSION`].
const RECOVERY: Duration = Duration::from_secs(15);

/// How long a lease is valid if nobody renews it.
const LEASE: Duration = Duration::from_secs(10);

/// How long the holder is suspended, or how long its call takes. This is longer than [`LEASE`].
const SUSPENSION: Duration = Duration::from_secs(12);

/// The number of the picture that comes to all replicas.
const PICTURE: usize = 1;

/// The number of a picture whose call ends only when [`Setup::release`] is true. Until then, the call keeps
/// the holder's only permit for calls to NVIDIA.
const BLOCKER: usize = 2;

/// What NVIDIA does with the first call for [`PICTURE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstCall {
    /// Answers it.
    Answer,
    /// Answers it only when [`Setup::release`] is true.
    Hold,
    /// Refuses the picture, but only when [`Setup::release`] is true.
    Refuse,
}

/// Three replicas. Each test first makes `holder` the holder of the lease. `proxy` is between `holder`
/// and the bucket.
struct Setup {
    proxy: FaultProxy,
    nvidia: FakeNvidia,
    holder: Replica,
    others: [Replica; 2],
    /// When this becomes true, NVIDIA answers the calls that it holds.
    release: watch::Sender<bool>,
}

impl Setup {
    async fn new(moto: &MotoServer, valkey: &ValkeyServer, first_call: FirstCall) -> Self {
        let proxy = FaultProxy::start(moto.address).await;
        let release = watch::Sender::new(false);
        let (released, is_first) = (release.clone(), AtomicBool::new(true));
        let nvidia = FakeNvidia::healthy_except(move |request| {
            let number = try_picture_number(request).filter(|_| request.line() == INFER)?;
            match number {
                BLOCKER => Some(embedding().held_until(&released)),
                PICTURE if is_first.swap(false, Ordering::SeqCst) => match first_call {
                    FirstCall::Answer => None,
                    FirstCall::Hold => Some(embedding().held_until(&released)),
                    FirstCall::Refuse => Some(Reply::status(422).held_until(&released)),
                },
                _ => None,
            }
        })
        .await;
        // Each replica has only one permit for calls to NVIDIA.
        let of_all = [valkey.settings(), vec![("NVIDIA_MAX_CONCURRENCY", "1".into())]].concat();
        let of_holder = [&of_all[..], &moto.settings_through(proxy.address)].concat();
        let of_others = [of_all, moto.settings()].concat();
        let holder = Replica::start(&nvidia, &of_holder).await;
        let others =
            [Replica::start(&nvidia, &of_others).await, Replica::start(&nvidia, &of_others).await];
        Self { proxy, nvidia, holder, others, release }
    }

    /// How often NVIDIA was called for [`PICTURE`].
    fn calls(&self) -> usize {
        let received = self.nvidia.received();
        received.iter().filter(|request| try_picture_number(request) == Some(PICTURE)).count()
    }

    /// Uploads a picture to the holder with `save=false`, and waits until NVIDIA has been called for it.
    async fn start_call_by_holder(&self, picture: usize) -> JoinHandle<reqwest::Result<Answer>> {
        let upload = self.holder.start_unsaved_upload(&tiny(picture));
        let is_called = async || {
            self.nvidia.received().iter().any(|call| try_picture_number(call) == Some(picture))
        };
        wait_for("the call", PATIENCE, is_called).await;
        upload
    }

    /// Uploads [`PICTURE`] to both other replicas. Asserts that they answer in time. `event` happens when
    /// both wait for the holder.
    async fn upload_to_others(&self, event: impl Future<Output = ()>) {
        let upload = async {
            let started = Instant::now();
            let uploads =
                self.others.iter().map(async |other| other.upload_unsaved(&tiny(PICTURE)).await);
            for answer in join_all(uploads).await {
                answer.assert_success();
            }
            started.elapsed()
        };
        let happen = async {
            let lease_commands = "imagesvc_valkey_commands_total{command=\"lease\",outcome=\"ok\"}";
            for other in &self.others {
                let has_asked =
                    async || metric(&other.get("/metrics").await.text(), lease_commands) >= 1.0;
                wait_for("the command for the lease", PATIENCE, has_asked).await;
            }
            event.await;
        };
        let (elapsed, ()) = join!(upload, happen);
        assert!(elapsed < RECOVERY, "the others answered after {elapsed:?}");
    }

    fn kill_holder(&self) {
        self.holder.process.signal("KILL");
    }

    async fn suspend_holder(&self) {
        self.holder.process.signal("STOP");
        sleep(SUSPENSION).await;
        self.holder.process.signal("CONT");
    }
}

async fn kill_before_the_call(moto: &MotoServer, valkey: &ValkeyServer) {
    let setup = Setup::new(moto, valkey, FirstCall::Answer).await;
    let _blocker = setup.start_call_by_holder(BLOCKER).await;
    let _picture = setup.holder.start_unsaved_upload(&tiny(PICTURE));
    // The holder has taken the picture's lease, and the picture waits for the holder's only permit.
    setup.holder.wait_for_metric("imagesvc_pictures_waiting", 1.0).await;
    setup.upload_to_others(async { setup.kill_holder() }).await;
    assert_eq!(setup.calls(), 1, "only one of the others should call NVIDIA");
}

async fn kill_during_the_call(moto: &MotoServer, valkey: &ValkeyServer) {
    let setup = Setup::new(moto, valkey, FirstCall::Hold).await;
    let _picture = setup.start_call_by_holder(PICTURE).await;
    setup.upload_to_others(async { setup.kill_holder() }).await;
    assert_eq!(setup.calls(), 2, "the others together should call NVIDIA once");
}

async fn kill_before_the_write(moto: &MotoServer, valkey: &ValkeyServer) {
    let mut setup = Setup::new(moto, valkey, FirstCall::Answer).await;
    let writes_vector = |line: &str| line.starts_with("PUT") && line.contains("/vectors/");
    setup.proxy.set_for(Fault::Hold, move |request| writes_vector(&request.line())).await;
    let picture = setup.start_call_by_holder(PICTURE).await;
    picture.await.unwrap().unwrap().assert_success();
    setup.upload_to_others(async { setup.kill_holder() }).await;
    assert_eq!(setup.calls(), 2, "the others together should call NVIDIA once");
}

async fn suspend_before_the_call(moto: &MotoServer, valkey: &ValkeyServer) {
    let setup = Setup::new(moto, valkey, FirstCall::Answer).await;
    let blocker = setup.start_call_by_holder(BLOCKER).await;
    let picture = setup.holder.start_unsaved_upload(&tiny(PICTURE));
    setup.holder.wait_for_metric("imagesvc_pictures_waiting", 1.0).await;
    setup.upload_to_others(setup.suspend_holder()).await;
    setup.release.send_replace(true);
    for upload in [blocker, picture] {
        upload.await.unwrap().unwrap().assert_success();
    }
    assert_eq!(setup.calls(), 1, "the holder should notice that it has lost its lease");
}

async fn suspend_during_the_call(moto: &MotoServer, valkey: &ValkeyServer) {
    let setup = Setup::new(moto, valkey, FirstCall::Hold).await;
    let picture = setup.start_call_by_holder(PICTURE).await;
    setup.upload_to_others(setup.suspend_holder()).await;
    setup.release.send_replace(true);
    picture.await.unwrap().unwrap().assert_success();
    assert_eq!(setup.calls(), 2, "the others together should call NVIDIA once");
}

async fn call_for_longer_than_a_lease(moto: &MotoServer, valkey: &ValkeyServer) {
    let setup = Setup::new(moto, valkey, FirstCall::Hold).await;
    let picture = setup.start_call_by_holder(PICTURE).await;
    setup
        .upload_to_others(async {
            sleep(SUSPENSION).await;
            setup.release.send_replace(true);
        })
        .await;
    picture.await.unwrap().unwrap().assert_success();
    assert_eq!(setup.calls(), 1, "a holder that runs should renew its lease");
}

async fn refuse_the_picture_once(moto: &MotoServer, valkey: &ValkeyServer) {
    let setup = Setup::new(moto, valkey, FirstCall::Refuse).await;
    let picture = setup.start_call_by_holder(PICTURE).await;
    let started = Instant::now();
    setup.upload_to_others(async { _ = setup.release.send_replace(true) }).await;
    assert!(started.elapsed() < LEASE, "the holder should release its lease after a failed call");
    assert_eq!(picture.await.unwrap().unwrap().status, 422);
    assert_eq!(setup.calls(), 2, "the others together should call NVIDIA once");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_the_holder_of_the_lease_the_others_answer_with_at_most_one_call() {
    let (Some(moto), Some(valkey)) = (MotoServer::start().await, ValkeyServer::start().await)
    else {
        return;
    };
    // These tests mostly wait for a lease to expire, so they run at the same time.
    join!(
        kill_before_the_call(&moto, &valkey),
        kill_during_the_call(&moto, &valkey),
        kill_before_the_write(&moto, &valkey),
        suspend_before_the_call(&moto, &valkey),
        suspend_during_the_call(&moto, &valkey),
        call_for_longer_than_a_lease(&moto, &valkey),
        refuse_the_picture_once(&moto, &valkey),
    );
}
