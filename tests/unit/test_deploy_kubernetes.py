"""The manifests as kustomize builds them: their schema, what pods may do, whom they may talk to, what selects what."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.deployment import BUILDS, KUBERNETES, built, compose, pod_templates

OVERLAYS = [path for path in BUILDS if path.startswith("overlays")]
PRIVATE = ["10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254", "100.64.0.1", "127.0.0.1", "fd00::1", "fe80::1"]
Document = dict[str, Any]


def of_kind(path: str, kind: str) -> list[Document]:
    return [document for document in built(path) if document["kind"] == kind]


def named(path: str, kind: str, name: str) -> Document:
    (found,) = (one for one in of_kind(path, kind) if one["metadata"]["name"] == name)
    return found


def pods(path: str) -> dict[str, Document]:
    """The templates of pods by the name that policies know them by."""
    return {
        template["metadata"]["labels"]["app.kubernetes.io/name"]: template
        for _, template, _ in pod_templates(built(path))
    }


def chosen(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector takes a pod."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", ()):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def ways_out(path: str, app: str) -> Iterator[tuple[Document, set[int]]]:
    """Whom a pod may talk to, and on which ports, by all policies together."""
    labels = pods(path)[app]["metadata"]["labels"]
    taken = [one["spec"] for one in of_kind(path, "NetworkPolicy") if chosen(one["spec"]["podSelector"], labels)]
    assert any("Egress" in policy["policyTypes"] for policy in taken), f"nothing holds {app} back"
    for policy in taken:
        for rule in policy.get("egress", ()):
            for peer in rule.get("to", [{}]):
                yield peer, {port["port"] for port in rule["ports"]}


@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_every_document_is_as_kubernetes_has_it(version: str) -> None:
    """Strictly: a field that there is not, such as a misspelt one, is an error. What several builds share, once."""
    validate = pytest.importorskip("kubernetes_validate").validate
    different = {json.dumps(document, sort_keys=True) for path in BUILDS for document in built(path)}
    assert len(different) > 40
    for document in sorted(different):
        validate(json.loads(document), version, strict=True)


def test_a_misspelt_field_is_noticed() -> None:
    package = pytest.importorskip("kubernetes_validate")
    document = json.loads(json.dumps(named("overlays/small", "Deployment", "api")))
    document["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFilesytem"] = True
    with pytest.raises(package.ValidationError):
        package.validate(document, "1.32", strict=True)


@pytest.mark.parametrize("path", BUILDS)
def test_pods_satisfy_the_restricted_standard(path: str) -> None:
    """The pod security standard that the namespace enforces, and a root file system that is read-only beside it."""
    for name, template, _ in pod_templates(built(path)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        kinds = {key for volume in spec.get("volumes", ()) for key in volume if key != "name"}
        assert kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"], name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    labels = named("overlays/small", "Namespace", "hubhound")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("path", BUILDS)
def test_only_prometheus_may_ask_the_cluster(path: str) -> None:
    accounts = {one["metadata"]["name"]: one for one in of_kind(path, "ServiceAccount")}
    for name, template, _ in pod_templates(built(path)):
        spec = template["spec"]
        if name == "StatefulSet/prometheus":
            assert spec["serviceAccountName"] in accounts
            continue
        assert spec["automountServiceAccountToken"] is False, name
        assert spec.get("serviceAccountName") in {None, *accounts}
    for role in of_kind(path, "Role"):
        assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    assert not of_kind(path, "ClusterRole")


@pytest.mark.parametrize("path", BUILDS)
def test_every_mount_has_its_volume_and_the_other_way_round(path: str) -> None:
    for name, template, document in pod_templates(built(path)):
        spec = template["spec"]
        there = {volume["name"] for volume in spec.get("volumes", ())}
        there |= {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", ())}
        mounted = {mount["name"] for container in spec["containers"] for mount in container.get("volumeMounts", ())}
        assert mounted == there, name
        configs = {one["metadata"]["name"] for one in of_kind(path, "ConfigMap")}
        claims = {one["metadata"]["name"] for one in of_kind(path, "PersistentVolumeClaim")}
        for volume in spec.get("volumes", ()):
            assert volume.get("configMap", {}).get("name") in {None, *configs}
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}


@pytest.mark.parametrize("path", BUILDS)
def test_images_are_pinned_and_those_of_compose(path: str) -> None:
    ours = {service["image"] for service in compose()["services"].values()} | {
        service["image"] for service in compose("compose.gpu.yaml")["services"].values()
    }
    for name, template, _ in pod_templates(built(path)):
        for container in template["spec"]["containers"]:
            assert container["image"] in ours, name


@pytest.mark.parametrize("path", OVERLAYS)
def test_every_model_belongs_to_exactly_one_crawler(path: str) -> None:
    """``--shard I/N``: N is the number of replicas, I comes from the ordinal of the pod."""
    spec = named(path, "StatefulSet", "crawler")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["SHARDS"]["value"] == str(spec["replicas"])
    label = variables["SHARD"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert label == "metadata.labels['apps.kubernetes.io/pod-index']"
    assert container["args"][container["args"].index("--shard") + 1] == "$(SHARD)/$(SHARDS)"
    assert [name for name in variables if name in {"SHARD", "SHARDS"}] == ["SHARD", "SHARDS"]


def test_the_cluster_has_more_of_everything() -> None:
    path = "overlays/cluster"
    assert named(path, "StatefulSet", "crawler")["spec"]["replicas"] == 4
    assert named(path, "StatefulSet", "qdrant")["spec"]["replicas"] == 3
    (crawler,) = named(path, "StatefulSet", "crawler")["spec"]["template"]["spec"]["containers"]
    assert crawler["image"].endswith("-cuda")
    assert crawler["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "HUBHOUND_DEVICE", "value": "cuda"} in crawler["env"]


@pytest.mark.parametrize("path", OVERLAYS)
def test_autoscaler_and_budgets_are_about_what_there_is(path: str) -> None:
    (scaler,) = of_kind(path, "HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    deployment = named(path, target["kind"], target["name"])
    assert "replicas" not in deployment["spec"]  # or every `kubectl apply` would undo what the autoscaler did
    assert scaler["spec"]["minReplicas"] < scaler["spec"]["maxReplicas"]
    assert all("cpu" in one["resources"]["requests"] for one in deployment["spec"]["template"]["spec"]["containers"])
    for budget in of_kind(path, "PodDisruptionBudget"):
        (app,) = budget["spec"]["selector"]["matchLabels"].values()
        assert app in pods(path)
        if budget["metadata"]["name"] == "api":
            assert budget["spec"]["minAvailable"] < scaler["spec"]["minReplicas"]  # or no node could be drained


@pytest.mark.parametrize("path", OVERLAYS)
def test_selectors_choose_the_pods_of_their_own(path: str) -> None:
    for name, template, document in pod_templates(built(path)):
        if document["kind"] in {"Deployment", "StatefulSet"}:
            assert chosen(document["spec"]["selector"], template["metadata"]["labels"]), name
        if document["kind"] == "StatefulSet":
            assert named(path, "Service", document["spec"]["serviceName"])
    for service in of_kind(path, "Service"):
        assert any(
            chosen({"matchLabels": service["spec"]["selector"]}, pod["metadata"]["labels"])
            for pod in pods(path).values()
        )


@pytest.mark.parametrize("path", OVERLAYS)
def test_nobody_is_let_in_or_out_who_is_not_named(path: str) -> None:
    policy = named(path, "NetworkPolicy", "nobody")["spec"]
    assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def check_way_out(peer: Document, ports: set[int], *, hub: bool) -> None:
    """One thing that a pod which probes models may talk to: Qdrant, names, and where it crawls the Hub the internet."""
    if "ipBlock" in peer:
        assert hub, "a way to the internet"
        block = peer["ipBlock"]
        assert ports == {443}
        excepted = [ipaddress.ip_network(one) for one in block.get("except", ())]
        for address in map(ipaddress.ip_address, PRIVATE):
            if address.version == ipaddress.ip_network(block["cidr"]).version:
                assert any(address in one for one in excepted), address
        return
    selector = peer["podSelector"]["matchLabels"]
    if selector == {"k8s-app": "kube-dns"}:
        assert ports == {53}
    else:
        assert selector == {"app.kubernetes.io/name": "qdrant"}
        assert "namespaceSelector" not in peer
        assert ports == {6333, 6334}


@pytest.mark.parametrize(
    ("path", "hub"), [("overlays/small", True), ("overlays/cluster", True), ("overlays/mirror", False)]
)
def test_pods_that_probe_reach_qdrant_and_at_most_the_public_hub(path: str, hub: bool) -> None:
    ways = list(ways_out(path, "crawler"))
    for peer, ports in ways:
        check_way_out(peer, ports, hub=hub)
    assert any("ipBlock" in peer for peer, _ in ways) is hub


def test_with_a_mirror_only_a_pod_that_runs_no_model_reaches_the_hub() -> None:
    path = "overlays/mirror"
    assert any("ipBlock" in peer for peer, _ in ways_out(path, "mirror"))
    (mirror,) = named(path, "CronJob", "mirror")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert not any("hubhound " in line for line in mirror["command"])
    assert not any(
        app == "qdrant"
        for peer, _ in ways_out(path, "mirror")
        for app in peer.get("podSelector", {}).get("matchLabels", {}).values()
    )
    (crawler,) = named(path, "StatefulSet", "crawler")["spec"]["template"]["spec"]["containers"]
    assert crawler["args"][crawler["args"].index("--source") + 1] == "/models"
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in crawler["volumeMounts"]


def secrets_of(path: str, kind: str, name: str) -> set[str]:
    spec = named(path, kind, name)["spec"]["template"]["spec"]
    return {item["key"] for volume in spec["volumes"] for item in volume.get("secret", {}).get("items", ())}


def test_crawlers_have_the_token_of_the_hub_only_where_they_ask_it() -> None:
    told = {path: secrets_of(path, "StatefulSet", "crawler") for path in OVERLAYS}
    both, one = {"qdrant_api_key", "hf_token"}, {"qdrant_api_key"}
    assert told == {"overlays/small": both, "overlays/cluster": both, "overlays/mirror": one, "overlays/fleet": one}


def test_in_a_fleet_pods_that_probe_reach_nodes_of_ray_and_nothing_else() -> None:
    path, nodes = "overlays/fleet", {"crawler", "prober"}
    for peer, ports in ways_out(path, "prober"):
        selector = peer["podSelector"]
        if selector.get("matchLabels") == {"k8s-app": "kube-dns"}:
            assert ports == {53}
            continue
        assert "namespaceSelector" not in peer
        (rule,) = selector["matchExpressions"]
        assert set(rule["values"]) == nodes
        assert ports == {6379, 6380, 6381, 6400}
    for app in ("qdrant", "api", "prometheus"):
        assert not any(lets_out(path, "prober", app, port) for port in (6333, 6334, 8080, 9090))
    assert all(lets_out(path, one, other, port) for one in nodes for other in nodes for port in (6379, 6400))
    assert not any("ipBlock" in peer for who in nodes for peer, _ in ways_out(path, who))


def test_in_a_fleet_pods_that_probe_have_no_secrets_and_the_one_that_has_runs_no_models() -> None:
    path = "overlays/fleet"
    spec = named(path, "Deployment", "prober")["spec"]["template"]["spec"]
    assert not any("secret" in volume for volume in spec["volumes"])
    (prober,) = spec["containers"]
    assert "envFrom" not in prober
    assert [variable["name"] for variable in prober["env"]] == ["POD_IP"]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in prober["volumeMounts"]}
    assert mounts["/models"] is True  # at the same path as the crawler's
    (crawler,) = named(path, "StatefulSet", "crawler")["spec"]["template"]["spec"]["containers"]
    assert "--num-cpus 0 " in crawler["command"][2]
    assert crawler["args"][crawler["args"].index("--source") + 1] == "/models"
    room, taken = (
        int(words[words.index(option) + 1])
        for words, option in ((prober["command"], "--num-cpus"), (crawler["args"], "--cpus-per-worker"))
    )
    assert room >= taken > 0


def test_a_way_out_that_should_not_be_is_noticed() -> None:
    block = {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}
    with pytest.raises(AssertionError):
        check_way_out(block, {443}, hub=True)
    with pytest.raises(AssertionError):
        check_way_out({"podSelector": {"matchLabels": {"app.kubernetes.io/name": "api"}}}, {8080}, hub=True)


@pytest.mark.parametrize("path", OVERLAYS)
def test_the_service_runs_no_models_where_it_has_a_network(path: str) -> None:
    (api,) = named(path, "Deployment", "api")["spec"]["template"]["spec"]["containers"]
    assert api["args"][api["args"].index("--run-models") + 1] == "no"
    assert "--allowed-host" not in api["args"]  # probes and Prometheus ask by the address of the pod


def lets_in(path: str, app: str, who: str, port: int) -> bool:
    """Whether a policy of a pod's own lets another in on a port."""
    labels = pods(path)[who]["metadata"]["labels"]
    return any(
        "podSelector" in peer and chosen(peer["podSelector"], labels) and port in {one["port"] for one in rule["ports"]}
        for rule in named(path, "NetworkPolicy", app)["spec"]["ingress"]
        for peer in rule["from"]
    )


def lets_out(path: str, who: str, app: str, port: int) -> bool:
    """Whether the policies of a pod let it go to another on a port."""
    labels = pods(path)[app]["metadata"]["labels"]
    return any(
        port in ports and "podSelector" in peer and chosen(peer["podSelector"], labels)
        for peer, ports in ways_out(path, who)
    )


@pytest.mark.parametrize("path", OVERLAYS)
def test_both_sides_of_a_conversation_are_allowed(path: str) -> None:
    asked = [("prometheus", "crawler", 9400), ("prometheus", "api", 8080), ("prometheus", "qdrant", 6333)]
    asked += [(who, "qdrant", port) for who in ("crawler", "api", "index-job") for port in (6333, 6334)]
    asked += [("qdrant", "qdrant", 6335)]
    for who, app, port in asked:
        assert lets_out(path, who, app, port), f"{who} may not ask {app}"
        assert lets_in(path, app, who, port), f"{app} does not let {who} in"
    assert not lets_in(path, "qdrant", "prometheus", 6335)
    assert not lets_out(path, "crawler", "api", 8080)


def test_qdrant_finds_its_peers_by_the_names_that_there_are() -> None:
    script = (KUBERNETES / "base" / "qdrant" / "initialize.sh").read_text()
    service = named("overlays/cluster", "StatefulSet", "qdrant")["spec"]["serviceName"]
    assert set(re.findall(r"http://(?:qdrant-0|\$HOSTNAME)\.([\w-]+):(\d+)", script)) == {(service, "6335")}
    headless = named("overlays/cluster", "Service", service)["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True
