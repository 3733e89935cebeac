"""The DevStack plugin's phases, tested against DevStack's contract with plugins."""

from __future__ import annotations

import subprocess

import pytest

from openstackoid.scope import Scope, scoped_auth_url

from .conftest import HOST, ROOT, DevStack

PROXY = f"http://{HOST}:8888"
ADMIN = "openstack --os-cloud devstack-system-admin"
WITH_CINDER = "key,n-api,n-cond,placement-api,g-api,q-svc,c-api,c-vol"


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("OPENSTACKOID_NAME", "InstanceOne"),
        ("OPENSTACKOID_PEERS", ""),
        ("OPENSTACKOID_ISSUERS", "ALL"),
        ("OPENSTACKOID_REGIONS", ""),
        ("OPENSTACKOID_POLICIES", ""),
        ("OPENSTACKOID_SEALED", "False"),
        ("OPENSTACKOID_TLS_BIND", ""),
        ("OPENSTACKOID_TLS_CERTIFICATE", ""),
        ("OPENSTACKOID_TLS_CA", ""),
        ("OPENSTACKOID_BIND", HOST),
        ("OPENSTACKOID_PORT", "8888"),
        (
            "OPENSTACKOID_SERVICES",
            "identity=/identity image=/image compute=/compute network=/networking "
            "placement=/placement",
        ),
    ],
)
def test_each_setting_has_a_default_and_local_conf_has_the_last_word(
    devstack: DevStack, name: str, default: str
) -> None:
    devstack.local_conf.clear()
    assert devstack.setting(name) == default
    devstack.local_conf[name] = "else"
    assert devstack.setting(name) == "else"


def test_the_configuration_is_in_etc(devstack: DevStack) -> None:
    run = devstack.run(
        then=f'unset OPENSTACKOID_CONF_DIR; source "{ROOT}/devstack/settings"; '
        'echo "$OPENSTACKOID_CONF_DIR"'
    )
    assert run.out == "/etc/openstackoid\n"


def test_trusting_nobody_is_not_the_default(devstack: DevStack) -> None:
    devstack.local_conf["OPENSTACKOID_ISSUERS"] = ""
    assert devstack.setting("OPENSTACKOID_ISSUERS") == ""


def test_volumes_are_in_scopes_if_cinder_is_enabled(devstack: DevStack) -> None:
    devstack.local_conf["ENABLED_SERVICES"] = WITH_CINDER
    assert devstack.setting("OPENSTACKOID_SERVICES").endswith(" block-storage=/volume")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("KEYSTONE_SERVICE_URI", "/identity"),
        ("KEYSTONE_AUTH_URI", "/identity"),
        ("KEYSTONE_SERVICE_URI_V3", "/identity/v3"),
        ("KEYSTONE_AUTH_URI_V3", "/identity/v3"),
    ],
)
def test_devstack_itself_finds_keystone_through_the_proxy(
    devstack: DevStack, name: str, path: str
) -> None:
    assert devstack.setting(name) == f"{PROXY}{path}"


def test_a_disabled_proxy_changes_nothing(devstack: DevStack) -> None:
    devstack.local_conf["DISABLED_SERVICES"] = "openstackoid-proxy"
    assert devstack.setting("KEYSTONE_SERVICE_URI") == f"http://{HOST}/identity"
    assert devstack.stack().calls == ()
    assert devstack.run("unstack", "clean").calls == ()


def test_settings_and_library_leave_tracing_as_it_was(devstack: DevStack) -> None:
    for trace in ("set -o xtrace", "set +o xtrace"):
        run = devstack.run(
            then=f'{trace}\nsource "{ROOT}/devstack/settings"\n'
            f'source "{ROOT}/devstack/lib/openstackoid"\n[[ $- == *x* ]] && echo traced'
            " || echo quiet"
        )
        assert run.out.strip() == ("traced" if "-o" in trace.split() else "quiet")


# --- bad settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OPENSTACKOID_NAME", "Instance One", "'Instance One' is not an instance name"),
        ("OPENSTACKOID_NAME", "-a", "'-a' is not an instance name"),
        ("OPENSTACKOID_PEERS", "InstanceTwo", "'InstanceTwo' is not NAME=HOST:PORT"),
        ("OPENSTACKOID_PEERS", "Two=192.168.56.12", "'Two=192.168.56.12' is not NAME=HOST:PORT"),
        ("OPENSTACKOID_PEERS", "Two=a:0", "'Two=a:0' is not NAME=HOST:PORT"),
        ("OPENSTACKOID_PEERS", "Two=a:65536", "'Two=a:65536' is not NAME=HOST:PORT"),
        ("OPENSTACKOID_PEERS", "Two=http://a:80", "is not NAME=HOST:PORT"),
        ("OPENSTACKOID_PEERS", '"=a:1', "is not NAME=HOST:PORT"),
        ("OPENSTACKOID_PEERS", "*", "'*' is not NAME=HOST:PORT"),
        ("OPENSTACKOID_PEERS", "Two=a:1 Two=b:1", "Two appears twice"),
        ("OPENSTACKOID_PEERS", "InstanceOne=other:1", "own name: give each instance its own"),
        ("OPENSTACKOID_ISSUERS", "Three", "Three is not in OPENSTACKOID_PEERS"),
        ("OPENSTACKOID_PORT", "http", "is not HOST:PORT"),
        ("OPENSTACKOID_BIND", "*", "is not HOST:PORT"),
        ("OPENSTACKOID_SEALED", "yes", "'yes' is neither True nor False"),
        ("OPENSTACKOID_POLICIES", "[{]", "neither JSON nor an absolute path: Expecting property"),
        ("OPENSTACKOID_POLICIES", "policies.json", "neither JSON nor an absolute path"),
        ("OPENSTACKOID_POLICIES", '{"issuer": "InstanceTwo"}', "not a JSON array"),
        ("OPENSTACKOID_POLICIES", "/nowhere", "there is no file /nowhere that"),
        ("OPENSTACKOID_TLS_BIND", "192.168.56.11", "'192.168.56.11' is not HOST:PORT"),
        ("OPENSTACKOID_CONF_DIR", "etc", "'etc' is not an absolute path"),
        ("OPENSTACKOID_CONF_DIR", '/a"b', "is not an absolute path"),
        ("OPENSTACKOID_SERVICES", "image", "'image' is not TYPE=/PATH"),
        ("OPENSTACKOID_SERVICES", "image=/a/b", "'image=/a/b' is not TYPE=/PATH"),
    ],
)
def test_a_bad_setting_ends_the_run_before_anything_is_installed(
    devstack: DevStack, name: str, value: str, says: str
) -> None:
    devstack.local_conf[name] = value
    run = devstack.run("stack pre-install", "stack install")
    assert run.status != 0
    assert name in run.error
    assert says in run.error
    assert run.called("pip_install") == []


def test_tls_with_clients_is_refused_because_the_proxy_does_not_support_it(
    devstack: DevStack,
) -> None:
    devstack.local_conf["ENABLED_SERVICES"] = "key,tls-proxy"
    assert "disable_service tls-proxy" in devstack.run("stack pre-install").error


def test_an_instance_without_a_keystone_is_refused(devstack: DevStack) -> None:
    devstack.local_conf["ENABLED_SERVICES"] = "n-cpu"
    assert "enable_service key" in devstack.run("stack pre-install").error


def test_an_error_that_only_the_package_finds_names_the_settings(devstack: DevStack) -> None:
    devstack.local_conf["OPENSTACKOID_SERVICES"] = "identity=/identity glance=/image"
    run = devstack.run("stack pre-install", "stack install")
    assert run.status != 0
    assert "'glance' is not an official service type" in run.error
    assert "OPENSTACKOID_*" in run.error
    assert run.called("run_process") == []


# --- install ----------------------------------------------------------------------------------


def test_install_takes_haproxy_and_our_package_from_the_clone(devstack: DevStack) -> None:
    run = devstack.stack("pre-install", "install")
    assert run.called("install_package") == ["install_package haproxy"]
    assert run.called("pip_install") == [f"pip_install -e {ROOT}"]
    assert (ROOT / "devstack/files/debs/openstackoid").read_text() == "haproxy\n"


def test_a_package_that_is_there_is_not_installed_again(devstack: DevStack) -> None:
    devstack.local_conf["PACKAGES"] = "haproxy"
    assert devstack.stack("install").called("install_package") == []


def test_the_unit_of_the_distribution_is_stopped_for_good(devstack: DevStack) -> None:
    calls = devstack.stack("install").calls
    assert "stop_service haproxy" in calls
    assert "systemctl disable haproxy" in calls


def test_the_proxy_runs_before_keystone_starts_and_with_checked_files(devstack: DevStack) -> None:
    run = devstack.stack("install")
    cfg = devstack.root / "openstackoid/haproxy.cfg"
    assert run.calls[-3:] == (
        "stop_process openstackoid-proxy",
        f"run_process openstackoid-proxy /usr/sbin/haproxy -W -db -f {cfg}",
        f"wait_for_service 60 {PROXY}/",
    )
    check = ["/usr/sbin/haproxy", "-c", "-f", str(cfg)]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0


def test_keystone_answers_as_it_was_asked(devstack: DevStack) -> None:
    devstack.stack("install")
    assert devstack.options("keystone.conf") == {
        "DEFAULT": {"max_token_size": "16384"},
        "oslo_middleware": {"enable_proxy_headers_parsing": "True"},
    }


def test_services_are_behind_apache_at_their_paths(devstack: DevStack) -> None:
    devstack.stack("install")
    assert devstack.description()["services"] == [
        {"type": kind, "prefix": path, "url": f"http://{HOST}:80", "max_foreign": 1}
        for kind, path in (
            ("identity", "/identity"),
            ("image", "/image"),
            ("compute", "/compute"),
            ("network", "/networking"),
            ("placement", "/placement"),
        )
    ]


def test_a_service_that_is_not_enabled_is_known_all_the_same(devstack: DevStack) -> None:
    devstack.local_conf["ENABLED_SERVICES"] = "key,g-api"
    devstack.stack("install")
    assert [item["type"] for item in devstack.description()["services"] if "url" not in item] == [
        "compute",
        "network",
        "placement",
    ]


@pytest.mark.parametrize(
    ("peers", "known"),
    [
        ("", {}),
        ("Two=192.168.56.12:8888", {"Two": "192.168.56.12:8888"}),
        (
            "Two=192.168.56.12:8888 Three=192.168.56.13:80",
            {"Two": "192.168.56.12:8888", "Three": "192.168.56.13:80"},
        ),
        (
            "Two=192.168.56.12:8888,Three=[::1]:80",
            {"Two": "192.168.56.12:8888", "Three": "[::1]:80"},
        ),
        (
            " Two=192.168.56.12:8888,\n  Three=192.168.56.13:80, ",
            {"Two": "192.168.56.12:8888", "Three": "192.168.56.13:80"},
        ),
        (f"InstanceOne={HOST}:8888 Two=192.168.56.12:8888", {"Two": "192.168.56.12:8888"}),
    ],
)
def test_peers_are_a_list_that_may_hold_this_instance(
    devstack: DevStack, peers: str, known: dict[str, str]
) -> None:
    devstack.local_conf["OPENSTACKOID_PEERS"] = peers
    devstack.stack("pre-install", "install")
    described = devstack.description()
    assert {peer["name"]: peer["address"] for peer in described["peers"]} == known
    assert described["name"] == "InstanceOne"
    assert described["bind"] == f"{HOST}:8888"


@pytest.mark.parametrize(
    ("issuers", "trusted"),
    [("ALL", ["Two", "Three"]), ("", []), ("Three", ["Three"]), ("Two, Three", ["Two", "Three"])],
)
def test_issuers_are_all_peers_or_those_that_are_named(
    devstack: DevStack, issuers: str, trusted: list[str]
) -> None:
    devstack.local_conf |= {
        "OPENSTACKOID_PEERS": "Two=192.168.56.12:8888 Three=192.168.56.13:8888",
        "OPENSTACKOID_ISSUERS": issuers,
    }
    devstack.stack("pre-install", "install")
    assert devstack.description()["issuers"] == trusted


# --- post-config and extra --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nova.conf", "nova_cell1.conf", "nova_cell2.conf"])
def test_each_nova_service_asks_its_own_proxy(devstack: DevStack, name: str) -> None:
    devstack.local_conf["NOVA_NUM_CELLS"] = "2"
    devstack.stack()
    options = devstack.options(name)
    assert options["glance"]["endpoint_override"] == f"{PROXY}/image"
    assert options["neutron"]["endpoint_override"] == f"{PROXY}/networking"
    assert options["placement"]["endpoint_override"] == f"{PROXY}/placement"
    assert "cinder" not in options


def test_nova_is_configured_after_what_devstack_does_in_the_background(devstack: DevStack) -> None:
    run = devstack.run("stack post-config")
    assert run.called("async_wait") == ["async_wait configure_neutron_nova"]
    stopped = devstack.run(
        then=f'source "{ROOT}/devstack/lib/openstackoid"\n'
        "function async_wait { exit 3; }\n"
        'rm -f "$NOVA_CONF"\nconfigure_openstackoid_services'
    )
    assert stopped.status == 3
    assert not (devstack.root / "nova.conf").exists()


def test_volumes_and_their_images_go_through_the_proxy_too(devstack: DevStack) -> None:
    devstack.local_conf["ENABLED_SERVICES"] = WITH_CINDER
    devstack.stack()
    assert devstack.options("nova.conf")["cinder"]["endpoint_template"] == f"{PROXY}/volume/v3"
    cinder = devstack.options("cinder.conf")
    assert cinder["DEFAULT"]["glance_api_servers"] == f"{PROXY}/image"
    assert cinder["oslo_middleware"]["enable_proxy_headers_parsing"] == "True"


@pytest.mark.parametrize(
    ("setting", "written"), [(None, "30"), ("5", "5"), ("08", "8"), ("0", "-1")]
)
def test_a_validation_is_cached_for_as_long_as_the_setting_says(
    devstack: DevStack, setting: str | None, written: str
) -> None:
    # For keystonemiddleware, 0 means "until the token expires".
    if setting is not None:
        devstack.local_conf["OPENSTACKOID_TOKEN_CACHE"] = setting
    devstack.stack()
    assert devstack.options("nova.conf")["keystone_authtoken"]["token_cache_time"] == written


@pytest.mark.parametrize("service", ["nova", "glance-api", "neutron", "placement"])
def test_each_api_follows_forwarded_headers_and_asks_services_for_their_role(
    devstack: DevStack, service: str
) -> None:
    devstack.stack()
    options = devstack.options(f"{service}.conf")
    assert options["oslo_middleware"]["enable_proxy_headers_parsing"] == "True"
    assert options["keystone_authtoken"]["service_token_roles_required"] == "True"


def test_glance_learns_the_path_that_apache_strips(devstack: DevStack) -> None:
    run = devstack.stack()
    assert devstack.options("glance-api.conf")["DEFAULT"] == {"debug": "True"}
    settings = (devstack.root / "apache/openstackoid.conf").read_text()
    assert '<Location "/image">' in settings
    assert '"expr=%{req:X-Forwarded-Prefix}/image"' in settings
    assert run.calls.index("enable_apache_mod headers") < run.calls.index("reload_service apache2")


def test_a_service_that_is_not_enabled_is_not_configured(devstack: DevStack) -> None:
    devstack.local_conf["ENABLED_SERVICES"] = "key,placement-api"
    run = devstack.stack()
    assert not (devstack.root / "nova.conf").exists()
    assert not (devstack.root / "apache/openstackoid.conf").exists()
    assert run.called("async_wait") == []


@pytest.mark.parametrize("phase", ["post-config", "extra"])
def test_the_catalog_points_to_the_proxy_for_the_services_behind_it(
    devstack: DevStack, phase: str
) -> None:
    run = devstack.stack(phase)
    head = f"{ADMIN} endpoint"
    assert run.called(f"{head} list") == [f"{head} list --region InstanceOne -f value -c ID -c URL"]
    assert run.called(f"{head} set") == [
        f"{head} set --url {PROXY}/compute/v2.1 c1",
        f"{head} set --url {PROXY}/compute/v2/$(project_id)s l1",
        f"{head} set --url {PROXY}/image g1",
        f"{head} set --url {PROXY}/networking n1",
        f"{head} set --url {PROXY}/placement p1",
    ]


def test_a_catalog_that_is_right_stays_as_it_is(devstack: DevStack) -> None:
    (devstack.root / "endpoints").write_text(f"g1 {PROXY}/image\n")
    assert (
        devstack.stack("extra").called("openstack --os-cloud devstack-system-admin endpoint set")
        == []
    )


def test_the_catalog_has_no_further_region_unless_asked(devstack: DevStack) -> None:
    run = devstack.stack()
    assert run.called(f"{ADMIN} region create") == []
    assert run.called(f"{ADMIN} endpoint create") == []


def test_a_region_of_the_catalog_carries_its_scope(devstack: DevStack) -> None:
    devstack.local_conf["OPENSTACKOID_REGIONS"] = "InstanceOne InstanceTwo, mixed:image=InstanceTwo"
    run = devstack.stack()
    regions = {
        "InstanceTwo": dict.fromkeys(("compute", "image", "network", "placement"), "InstanceTwo"),
        "mixed": {"image": "InstanceTwo"},
    }
    paths = {"identity": "/identity", "compute": "/compute/v2.1", "image": "/image"}
    assert run.called(f"{ADMIN} region create") == [
        f"{ADMIN} region create {region}" for region in regions
    ]
    assert run.called(f"{ADMIN} endpoint create") == [
        f"{ADMIN} endpoint create --region {region} {kind} public"
        f" {scoped_auth_url(PROXY + path, Scope(scope))}"
        for region, scope in regions.items()
        for kind, path in paths.items()
    ]


def test_a_region_that_is_there_stays_as_it_is(devstack: DevStack) -> None:
    devstack.local_conf |= {"OPENSTACKOID_REGIONS": "InstanceTwo", "REGIONS": "InstanceTwo other"}
    assert devstack.stack().called(f"{ADMIN} region create") == []


@pytest.mark.parametrize(
    ("region", "says"),
    [
        ("InstanceThree", "unknown instance 'InstanceThree': use InstanceOne, InstanceTwo"),
        ("mixed:image=InstanceThree", "unknown instance 'InstanceThree'"),
        ("mixed:identity=InstanceTwo", "'identity' cannot be in a region"),
        ("mixed:image=InstanceTwo+glance=InstanceOne", "'image' appears twice"),
        ("mixed:volume=InstanceTwo", "'block-storage' cannot be in a region: use compute, image"),
        ("a/b:image=InstanceTwo", "'a/b:image=InstanceTwo' is neither a peer's name"),
    ],
)
def test_a_bad_region_ends_the_run_before_the_proxy_starts(
    devstack: DevStack, region: str, says: str
) -> None:
    devstack.local_conf["OPENSTACKOID_REGIONS"] = region
    run = devstack.run("stack pre-install", "stack install")
    assert run.status != 0
    assert f"OPENSTACKOID_REGIONS: '{region}' is neither" in run.error
    assert says in run.error
    assert run.called("run_process") == []


def test_a_failing_client_ends_the_run(devstack: DevStack) -> None:
    (devstack.root / "endpoints").unlink()
    assert devstack.run("stack extra").status != 0


# --- unstack, clean, once more ----------------------------------------------------------------


def test_unstack_stops_the_proxy_and_keeps_its_configuration(devstack: DevStack) -> None:
    devstack.stack()
    run = devstack.run("unstack")
    assert run.calls == ("stop_process openstackoid-proxy",)
    assert devstack.haproxy_cfg()


def test_clean_leaves_nothing_of_ours(devstack: DevStack) -> None:
    devstack.stack()
    run = devstack.run("unstack", "clean")
    assert run.status == 0
    assert not (devstack.root / "openstackoid").exists()
    assert not (devstack.root / "apache/openstackoid.conf").exists()
    assert run.calls[-1] == f"pip_uninstall openstackoid from {devstack.root}/venv"


def test_cleaning_twice_or_without_a_stack_works(devstack: DevStack) -> None:
    assert devstack.run("unstack", "clean", "unstack", "clean").status == 0


def test_stacking_again_gives_the_same_result(devstack: DevStack) -> None:
    first = devstack.stack()
    files = {path.name: path.read_text() for path in (devstack.root / "openstackoid").iterdir()}
    devstack.run("unstack")
    assert devstack.stack().calls == first.calls
    again = {path.name: path.read_text() for path in (devstack.root / "openstackoid").iterdir()}
    assert again == files


def test_new_peers_come_into_the_configuration_with_the_next_stack(devstack: DevStack) -> None:
    devstack.stack()
    assert "peer_InstanceThree" not in devstack.haproxy_cfg()
    devstack.local_conf["OPENSTACKOID_PEERS"] += " InstanceThree=192.168.56.13:8888"
    devstack.stack()
    assert "peer_InstanceThree" in devstack.haproxy_cfg()


def test_the_services_stay_vanilla(devstack: DevStack) -> None:
    run = devstack.stack()
    assert [call.split()[0] for call in run.calls if "install" in call.split()[0]] == [
        "install_package",
        "pip_install",
    ]
    text = "".join(
        (ROOT / "devstack" / name).read_text()
        for name in ("settings", "plugin.sh", "lib/openstackoid")
    )
    for word in ("git_clone", "_REPO", "_BRANCH", "patch ", "LIBS_FROM_GIT"):
        assert word not in text
