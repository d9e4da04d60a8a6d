//! Operators: data keys are rotated, workspaces re-encrypted and destroyed,
//! while all the others go on.

use std::{sync::Arc, time::Duration};

use tonic::{Response, Status};
use uuid::Uuid;
use workflow_secrets::grpc::proto::{
    ReencryptWorkspaceRequest, ReencryptWorkspaceResponse, RotateDataKeyRequest,
    ShredWorkspaceRequest,
};

use super::{StillSecrets, WORKSPACES, World};
use crate::{
    oracle::Verdict,
    site::{Outcome, REPLICAS, answered, timed},
    support::platform::{KeyClient, create, resolve, with},
};

/// Of a workspace whose retired keys stay for 25 hours; 100 is the limit.
const ROTATIONS: usize = 80;

/// Rotates the data keys of one workspace after the other, and seals all
/// values anew. Where nothing is written it destroys retired keys at once;
/// elsewhere repeated requests would not be known again.
pub(crate) async fn rotate(world: Arc<World>) {
    let mut rng = world.rng("operator", 0);
    let mut caller = world.caller("operator", "operator", 0);
    for round in 0.. {
        tokio::time::sleep(rng.between(Duration::from_millis(500), Duration::from_secs(4))).await;
        if world.site.is_over() {
            return;
        }
        let forget_requests = round % 3 == 0 || round / 3 > WORKSPACES * ROTATIONS;
        let workspace = if forget_requests {
            StillSecrets::WORKSPACE.to_owned()
        } else {
            format!("ws{}", rng.below(WORKSPACES))
        };
        let request = RotateDataKeyRequest { workspace: workspace.clone(), ..Default::default() };
        match answered(caller.any_keys().rotate_data_key(timed(request))).await {
            // Not all have a secret yet, and one may be full.
            Outcome::No(reason, _)
                if ["NO_DATA_KEY", "TOO_MANY_DATA_KEYS"].contains(&reason.as_str()) => {}
            other => {
                let rotated = world.tally.answer("RotateDataKey", other);
                world.tally.acknowledged.add(u64::from(rotated.is_some()));
            }
        }
        let request = ReencryptWorkspaceRequest { workspace: workspace.clone(), forget_requests };
        let outcome = answered(reencrypted(&mut caller.any_keys(), request)).await;
        let Some(report) = world.tally.answer("ReencryptWorkspace", outcome) else { continue };
        let verdict = match report.failed {
            0 => Verdict::Right,
            _ => Verdict::Lost(format!("{workspace}: {:?}", report.failures)),
        };
        world.tally.judge("ReencryptWorkspace", verdict);
    }
}

/// The report of a whole run.
async fn reencrypted(
    client: &mut KeyClient,
    request: ReencryptWorkspaceRequest,
) -> Result<Response<ReencryptWorkspaceResponse>, Status> {
    let mut steps = client.reencrypt_workspace(request).await?.into_inner();
    while let Some(step) = steps.message().await? {
        if step.done {
            return Ok(Response::new(step));
        }
    }
    Err(Status::unavailable("cut"))
}

/// Fills workspaces and destroys them: what was acknowledged as gone stays
/// gone.
pub(crate) async fn shred(world: Arc<World>) {
    let mut rng = world.rng("shredder", 0);
    let mut operator = world.caller("operator", "shredder", 1);
    let mut platform = world.caller("platform", "shredder", 2);
    let mut executor = world.caller("executor", "shredder", 3);
    let mut destroyed: Vec<String> = Vec::new();
    for round in 0.. {
        tokio::time::sleep(rng.between(Duration::from_millis(200), Duration::from_secs(2))).await;
        if world.site.is_over() {
            return;
        }
        let workspace = format!("gone{round}");
        for number in 0..3 {
            let request = with(create(&workspace, &format!("G{number}"), "short-lived"), |r| {
                r.request_id = Uuid::new_v4().to_string();
            });
            let outcome = answered(platform.any().create_secret(timed(request))).await;
            let made = world.tally.answer("Create", outcome);
            world.tally.acknowledged.add(u64::from(made.is_some()));
        }
        let request =
            ShredWorkspaceRequest { workspace: workspace.clone(), confirm: workspace.clone() };
        let outcome = answered(operator.any_keys().shred_workspace(timed(request))).await;
        // If it is away the workspace may be there or not, and is left.
        if world.tally.answer("ShredWorkspace", outcome).is_none() {
            continue;
        }
        world.tally.acknowledged.add(1);
        destroyed.push(workspace);
        let some = [destroyed.last().unwrap(), rng.pick(&destroyed)];
        for workspace in some {
            for replica in 0..REPLICAS {
                let request = timed(resolve(workspace, &["G0"]));
                let outcome = answered(executor.of(replica).resolve_secrets(request)).await;
                judge_gone(&world, workspace, outcome);
                let request = timed(create(workspace, "G9", "back"));
                let outcome = answered(platform.of(replica).create_secret(request)).await;
                judge_gone(&world, workspace, outcome);
            }
        }
    }
}

fn judge_gone<T>(world: &World, workspace: &str, outcome: Outcome<T>) {
    let lost = |told: &str| Verdict::Lost(format!("{workspace} was destroyed: {told}"));
    let verdict = match outcome {
        Outcome::No(reason, _) if reason == "WORKSPACE_SHREDDED" => Verdict::Right,
        Outcome::No(reason, _) => lost(&reason),
        Outcome::Answer(_) => lost("an answer"),
        Outcome::Away(why) => return world.tally.away(&why),
    };
    world.tally.judge("after ShredWorkspace", verdict);
}
