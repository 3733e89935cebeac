"""`openstack --scope`, through the real command, against a server that answers like an instance."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from openstack.connection import Connection

import openstackoid
from openstackoid.osc import environment_scope
from openstackoid.scope import ScopeError, decode_url_scope

UNKNOWN = "unknown instance 'Nowhere' in scope; known: InstanceOne, InstanceTwo"


@dataclass(frozen=True)
class Request:
    """A request: its scope (empty if it has none), and its path without that scope."""

    method: str
    target: str
    body: Any

    @property
    def path(self) -> str:
        return "/" + self.target.split("/", 3)[3] if self.is_scoped else self.target

    @property
    def scope(self) -> dict[str, str]:
        if not self.is_scoped:
            return {}
        scope: dict[str, str] = json.loads(decode_url_scope(self.target.split("/")[2]))
        return scope

    @property
    def is_scoped(self) -> bool:
        return self.target.startswith("/scope/")


@dataclass
class Frontend:
    """InstanceOne's frontend: records requests, and answers like keystone, glance and designate.

    It does with a scope only what the client can see: the catalog is the issuer's.
    """

    url: str
    requests: list[Request] = field(default_factory=list)
    #: The instance whose image service takes 20 s for an answer.
    slow: str = ""

    @property
    def login(self) -> Request:
        """The one request for a token."""
        (login,) = [r for r in self.requests if r.path.endswith("/auth/tokens")]
        return login

    @property
    def user(self) -> dict[str, Any]:
        user: dict[str, Any] = self.login.body["auth"]["identity"]["password"]["user"]
        return user

    def answer(self, request: Request) -> tuple[int, dict[str, Any]]:
        if "Nowhere" in request.scope.values():
            return 400, {"error": {"code": 400, "title": "Bad Request", "message": UNKNOWN}}
        if self.slow and request.scope.get("image") == self.slow:
            time.sleep(20)
        here = self.url + request.target.rstrip("/")
        answers: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {
            ("GET", "/identity"): (
                300,
                {"versions": {"values": [_version("v3.14", f"{here}/v3/")]}},
            ),
            ("GET", "/identity/v3"): (200, {"version": _version("v3.14", f"{here}/")}),
            ("POST", "/identity/v3/auth/tokens"): (201, {"token": self.token(request)}),
            ("GET", "/scope"): (
                200,
                {"instances": [{"name": "InstanceOne"}, {"name": "InstanceTwo"}]},
            ),
            ("GET", "/image"): (300, {"versions": [_version("v2.9", f"{here}/v2/")]}),
            ("GET", "/dns"): (300, {"versions": {"values": [_version("v2", f"{here}/v2/")]}}),
            ("GET", "/image/v2/images"): (200, {"images": []}),
            ("POST", "/dns/v2/tsigkeys"): (201, {"id": "t", "links": {}, **(request.body or {})}),
        }
        if request.path.startswith("/dns/v2/tsigkeys?"):
            return 200, {"tsigkeys": [], "links": {}}
        unknown = 404, {"error": {"code": 404, "message": f"no {request.target} here"}}
        return answers.get((request.method, request.path.rstrip("/")), unknown)

    def token(self, request: Request) -> dict[str, Any]:
        issuer = request.scope.get("identity", "InstanceOne")
        return {
            "methods": ["password"],
            "user": {"id": "u", "name": "u", "domain": {"id": "default", "name": "Default"}},
            "project": {"id": "p", "name": "p", "domain": {"id": "default", "name": "Default"}},
            "issued_at": "2026-01-01T00:00:00.000000Z",
            "expires_at": "2099-01-01T00:00:00.000000Z",
            "catalog": [
                {
                    "id": service,
                    "type": service,
                    "name": service,
                    "endpoints": [
                        {
                            "id": service,
                            "interface": "public",
                            "region": issuer,
                            "region_id": issuer,
                            "url": f"{self.url}/{path}",
                        }
                    ],
                }
                for service, path in [
                    ("identity", "identity"),
                    ("image", "image"),
                    ("dns", "dns"),
                ]
            ],
        }


def _version(name: str, url: str) -> dict[str, Any]:
    return {"id": name, "status": "CURRENT", "links": [{"rel": "self", "href": url}]}


@pytest.fixture
def frontend() -> Iterator[Frontend]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, self.path, json.loads(body) if body else None)
            instance.requests.append(request)
            status, document = instance.answer(request)
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("X-Subject-Token", "a-token")
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        instance = Frontend(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield instance
        server.shutdown()


@dataclass(frozen=True)
class Result:
    """A command's exit status and output."""

    status: int
    out: str
    err: str


@dataclass
class Client:
    """The `openstack` command, in an environment with only the test's own variables."""

    directory: Path
    variables: dict[str, str]

    def __call__(self, *argv: str, stdin: str = "") -> Result:
        done = subprocess.run(
            [Path(sys.executable).with_name("openstack"), *argv],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            env={"HOME": str(self.directory), "LC_ALL": "C.UTF-8", **self.variables},
        )
        return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def openstack(tmp_path: Path, frontend: Frontend) -> Client:
    """The command inside InstanceOne: with the lab's clouds.yaml, and OS_CLOUD."""
    nobody_listens = "http://127.0.0.1:1"  # InstanceTwo's own frontend must never be asked.
    clouds = {
        name: {
            "auth": {
                "auth_url": f"{url}/identity/v3",
                "username": f"admin-of-{name}",
                "password": f"password-of-{name}",
                "project_name": "admin",
                "user_domain_name": "Default",
                "project_domain_name": "Default",
            },
            "region_name": name,
        }
        for name, url in [("InstanceOne", frontend.url), ("InstanceTwo", nobody_listens)]
    }
    path = tmp_path / "clouds.yaml"
    path.write_text(yaml.safe_dump({"clouds": clouds}))
    return Client(tmp_path, {"OS_CLIENT_CONFIG_FILE": str(path), "OS_CLOUD": "InstanceOne"})


@pytest.fixture
def plain(openstack: Client, frontend: Frontend) -> Client:
    """The command with only OS_* variables, and no named cloud."""
    del openstack.variables["OS_CLOUD"]
    openstack.variables |= {
        "OS_AUTH_URL": f"{frontend.url}/identity",
        "OS_USERNAME": "someone",
        "OS_PASSWORD": "secret",
        "OS_PROJECT_NAME": "demo",
        "OS_USER_DOMAIN_NAME": "Default",
        "OS_PROJECT_DOMAIN_NAME": "Default",
        "OS_REGION_NAME": "InstanceOne",
    }
    return openstack


def test_without_a_scope_the_login_is_the_stock_one(openstack: Client, frontend: Frontend) -> None:
    assert openstack("image", "list").status == 0
    assert frontend.login.target == "/identity/v3/auth/tokens"


@pytest.mark.parametrize(
    "line",
    [
        ["--scope", '{"image": "InstanceTwo"}', "image", "list"],
        ["image", "--scope", '{"image": "InstanceTwo"}', "list"],
        ["image", "list", "--scope", '{"image": "InstanceTwo"}'],
        ["image", "list", '--scope={"image": "InstanceTwo"}', "--long"],
        ["image", "list", "--os-scope", "image=InstanceTwo"],
        ["image", "list", "--os-scope=glance=InstanceTwo"],
    ],
    ids=" ".join,
)
def test_a_scope_anywhere_on_the_line_goes_into_the_auth_url(
    openstack: Client, frontend: Frontend, line: list[str]
) -> None:
    result = openstack(*line)
    assert (result.status, result.err) == (0, "")
    assert frontend.login.scope == {"image": "InstanceTwo"}
    assert frontend.login.path == "/identity/v3/auth/tokens"
    assert frontend.user["name"] == "admin-of-InstanceOne"
    assert frontend.requests[-1].target == "/image/v2/images"


@pytest.mark.parametrize(
    ("auth_url", "auth_type"),
    [("/identity", ""), ("/identity/", ""), ("/identity/v3", ""), ("/identity/v3", "v3password")],
)
def test_plain_variables_work_with_and_without_a_version_in_the_auth_url(
    plain: Client, frontend: Frontend, auth_url: str, auth_type: str
) -> None:
    plain.variables |= {"OS_AUTH_URL": frontend.url + auth_url, "OS_AUTH_TYPE": auth_type}
    result = plain("token", "issue", "-f", "value", "-c", "id", "--scope", "image=InstanceTwo")
    assert (result.status, result.out) == (0, "a-token\n")
    assert frontend.login.scope == {"image": "InstanceTwo"}
    assert frontend.login.path == "/identity/v3/auth/tokens"
    assert frontend.user["name"] == "someone"


def test_an_auth_type_without_a_password_carries_the_scope_as_well(
    openstack: Client, frontend: Frontend
) -> None:
    result = openstack(
        *[
            "--os-auth-type",
            "v3applicationcredential",
            "--os-auth-url",
            f"{frontend.url}/identity/v3",
        ],
        *["--os-application-credential-id", "i", "--os-application-credential-secret", "s"],
        *["--os-cloud", "", "--scope", "image=InstanceTwo", "catalog", "list"],
    )
    assert (result.status, result.err) == (0, "")
    assert frontend.login.scope == {"image": "InstanceTwo"}
    assert frontend.login.body["auth"]["identity"]["methods"] == ["application_credential"]


def test_the_named_cloud_is_the_home_instance(openstack: Client, frontend: Frontend) -> None:
    openstack.variables |= {"OS_CLOUD": "InstanceTwo"}
    openstack("image", "list", "--os-cloud", "InstanceOne", "--scope", "image=InstanceTwo")
    assert frontend.user["name"] == "admin-of-InstanceOne"


def test_several_scopes_merge_from_left_to_right(openstack: Client, frontend: Frontend) -> None:
    openstack(
        *["--scope", '{"image": "InstanceTwo", "network": "InstanceTwo"}', "image"],
        *["list", "--os-scope", "network=InstanceOne", "--scope", "nova=InstanceOne"],
    )
    assert frontend.login.scope == {
        "image": "InstanceTwo",
        "network": "InstanceOne",
        "compute": "InstanceOne",
    }


def test_the_line_overrides_the_variable_of_a_service_and_that_overrides_os_scope(
    openstack: Client, frontend: Frontend
) -> None:
    openstack.variables |= {
        "OS_SCOPE": '{"image": "A", "network": "A", "compute": "A"}',
        "OS_SCOPE_NEUTRON": "B",
        "OS_SCOPE_IMAGE": "B",
        "OS_SCOPE_BLOCK_STORAGE": "B",
    }
    openstack("image", "list", "--scope", "image=C")
    assert frontend.login.scope == {
        "compute": "A",
        "network": "B",
        "block-storage": "B",
        "image": "C",
    }


def test_json_in_a_variable_works_where_variables_are_the_whole_configuration(
    plain: Client, frontend: Frontend
) -> None:
    plain.variables |= {"OS_SCOPE": '{"image": "InstanceTwo"}'}
    result = plain("image", "list")
    assert (result.status, result.err) == (0, "")
    assert frontend.login.scope == {"image": "InstanceTwo"}


@pytest.mark.parametrize(
    ("variables", "culprits"),
    [
        ({"OS_SCOPE": '{"image"'}, ["OS_SCOPE: ", "malformed"]),
        ({"OS_SCOPE": "image=a b"}, ["OS_SCOPE: ", "'a b'"]),
        ({"OS_SCOPE_IMAG": "InstanceTwo"}, ["OS_SCOPE_IMAG: ", "'IMAG'"]),
        ({"OS_SCOPE_IMAGE": "A,network=B"}, ["OS_SCOPE_IMAGE: ", "'A,network=B'"]),
        ({"OS_SCOPE_IMAGE": "A", "OS_SCOPE_GLANCE": "B"}, ["OS_SCOPE_GLANCE", "OS_SCOPE_IMAGE"]),
    ],
)
def test_an_error_in_a_variable_names_the_variable(
    openstack: Client, frontend: Frontend, variables: dict[str, str], culprits: list[str]
) -> None:
    openstack.variables |= variables
    result = openstack("image", "list")
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert all(culprit in result.err for culprit in culprits)
    assert frontend.requests == []


@pytest.mark.parametrize(
    ("scope", "culprit"),
    [
        ('{"image": ', "malformed scope '{\"image\":'"),
        ("nova", "malformed scope 'nova'"),
        ("POOL", "malformed scope 'POOL'"),
        ("imag=InstanceTwo", "unknown service type 'imag'"),
        ("image=", "''"),
        ("image=a\nb\x1b[2J", r"'a\nb\x1b[2J'"),
    ],
)
def test_a_bad_scope_ends_before_any_request_with_one_line(
    openstack: Client, frontend: Frontend, scope: str, culprit: str
) -> None:
    result = openstack("server", "create", "my-vm", "--scope", scope, "--flavor", "m1.tiny")
    assert (result.status, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert "error: --scope: " in result.err
    assert culprit in result.err
    assert frontend.requests == []


def test_a_foreign_identity_takes_that_clouds_credentials_to_the_home_frontend(
    openstack: Client, frontend: Frontend
) -> None:
    result = openstack("image", "list", "--scope", "keystone=InstanceTwo")
    assert (result.status, result.err) == (0, "")
    assert frontend.login.scope == {"identity": "InstanceTwo"}
    assert frontend.user["name"] == "admin-of-InstanceTwo"
    assert frontend.user["password"] == "password-of-InstanceTwo"
    # The catalog's region is InstanceTwo, so no endpoint would be found in the home region.
    assert frontend.requests[-1].target == "/image/v2/images"


def test_a_foreign_identity_wins_over_the_home_credentials_in_variables(
    plain: Client, frontend: Frontend
) -> None:
    result = plain("image", "list", "--scope", "identity=InstanceTwo")
    assert (result.status, result.err) == (0, "")
    assert frontend.login.scope == {"identity": "InstanceTwo"}
    assert frontend.user["name"] == "admin-of-InstanceTwo"
    assert frontend.login.body["auth"]["scope"]["project"]["name"] == "admin"


def test_the_command_line_wins_over_the_foreign_clouds_credentials(
    openstack: Client, frontend: Frontend
) -> None:
    openstack("image", "list", "--scope", "identity=InstanceTwo", "--os-project-name", "demo")
    assert frontend.user["name"] == "admin-of-InstanceTwo"
    assert frontend.login.body["auth"]["scope"]["project"]["name"] == "demo"


@pytest.mark.parametrize("variables", [{}, {"OS_CLOUD": "InstanceOne"}])
def test_the_home_identity_keeps_the_home_credentials(
    plain: Client, frontend: Frontend, variables: dict[str, str]
) -> None:
    plain.variables |= variables
    result = plain("image", "list", "--scope", "identity=InstanceOne")
    assert (result.status, result.err) == (0, "")
    assert frontend.user["name"] == "someone"


def test_a_foreign_identity_without_a_cloud_says_to_add_it(
    openstack: Client, frontend: Frontend
) -> None:
    result = openstack("image", "list", "--scope", "identity=InstanceThree")
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert "clouds.yaml has no cloud 'InstanceThree'" in result.err
    assert "add it" in result.err
    assert frontend.requests == []


def test_an_unknown_instance_needs_no_cloud_for_other_services(
    openstack: Client, frontend: Frontend
) -> None:
    assert openstack("image", "list", "--scope", "image=InstanceThree").status == 0
    assert frontend.login.scope == {"image": "InstanceThree"}


def test_the_proxys_refusal_reaches_the_user(openstack: Client) -> None:
    result = openstack("token", "issue", "--scope", "image=Nowhere")
    assert result.status == 1
    assert f"{UNKNOWN} (HTTP 400)" in result.err
    assert "Traceback" not in result.err


def test_a_login_free_auth_type_does_not_lose_the_scope_silently(
    openstack: Client, frontend: Frontend
) -> None:
    result = openstack(
        *["--os-cloud", "", "--os-endpoint", frontend.url, "--os-token", "t"],
        *["image", "list", "--scope", "image=InstanceTwo"],
    )
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert "'admin_token'" in result.err
    assert frontend.requests == []


def test_an_unknown_home_cloud_is_one_line(openstack: Client) -> None:
    result = openstack("image", "list", "--os-cloud", "Missing", "--scope", "image=InstanceTwo")
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert "Missing" in result.err


TSIGKEY = ["--name", "n", "--algorithm", "hmac-sha256", "--secret", "s", "--resource-id", "r"]


@pytest.mark.parametrize("command", ["tsigkey create", "tsig cr"])
@pytest.mark.parametrize("scope", [["--scope", "POOL"], ["--scope=POOL"]])
def test_designates_own_scope_reaches_it(
    openstack: Client, frontend: Frontend, command: str, scope: list[str]
) -> None:
    result = openstack(*command.split(), *scope, *TSIGKEY)
    assert (result.status, result.err) == (0, "")
    assert not frontend.login.is_scoped
    assert frontend.requests[-1].path == "/dns/v2/tsigkeys"
    assert frontend.requests[-1].body["scope"] == "POOL"


def test_both_scopes_can_be_on_one_line(openstack: Client, frontend: Frontend) -> None:
    result = openstack(
        "--os-scope", "image=InstanceTwo", "tsigkey", "create", "--scope", "POOL", *TSIGKEY
    )
    assert (result.status, result.err) == (0, "")
    assert frontend.login.scope == {"image": "InstanceTwo"}
    assert frontend.requests[-1].body["scope"] == "POOL"


def test_os_scope_is_never_designates(openstack: Client, frontend: Frontend) -> None:
    result = openstack("tsigkey", "list", "--os-scope", "POOL")
    assert (result.status, frontend.requests) == (2, [])
    assert "--os-scope: malformed scope 'POOL'" in result.err


def test_help_explains_the_option_with_an_example_and_the_variables(openstack: Client) -> None:
    result = openstack("--help")
    words = " ".join(result.out.split())
    assert result.status == 0
    assert "--scope <scope>, --os-scope <scope>" in words
    assert """--scope '{"image":"InstanceTwo"}'""" in words
    assert "--scope image=InstanceTwo,network=InstanceTwo" in words
    assert "Env: OS_SCOPE for all services, OS_SCOPE_<SERVICE> for one" in words


@pytest.mark.parametrize(
    "line", ["--help", "help image list", "image list --help", "complete --shell none"]
)
def test_help_works_even_if_the_scope_is_wrong(openstack: Client, line: str) -> None:
    openstack.variables |= {"OS_SCOPE": "{"}
    result = openstack(*line.split())
    assert (result.status, result.err) == (0, "")


def test_a_commands_own_abbreviations_are_left_alone(openstack: Client, frontend: Frontend) -> None:
    result = openstack("tsigkey", "list", "--sc", "POOL")
    assert (result.status, result.err) == (0, "")
    assert frontend.requests[-1].path == "/dns/v2/tsigkeys?scope=POOL"


def test_a_shortened_scope_is_refused_and_not_ignored(openstack: Client) -> None:
    result = openstack("image", "list", "--scop", "image=InstanceTwo")
    assert result.status == 2
    assert "unrecognized arguments: --scop image=InstanceTwo" in result.err


def test_the_scope_of_an_interactive_session_holds_for_its_commands(
    openstack: Client, frontend: Frontend
) -> None:
    result = openstack("--scope", "image=InstanceTwo", stdin="token issue -f value -c id\n")
    assert "a-token" in result.out
    assert frontend.login.scope == {"image": "InstanceTwo"}


def test_the_environment_is_read_without_any_client() -> None:
    assert environment_scope({"OS_CLOUD": "x", "OS_SCOPES": "x", "OS_SCOPE_IMAGE": " "}) == {}


def test_a_scope_may_have_a_name_in_clouds_yaml(openstack: Client, frontend: Frontend) -> None:
    _name_scopes(openstack, {"mixed": {"glance": "InstanceTwo"}})
    assert openstack("image", "list", "--scope", "mixed").status == 0
    assert frontend.login.scope == {"image": "InstanceTwo"}


def test_the_variable_may_have_the_name_of_a_scope(openstack: Client, frontend: Frontend) -> None:
    _name_scopes(openstack, {"mixed": {"image": "InstanceTwo"}})
    openstack.variables["OS_SCOPE"] = "mixed"
    assert openstack("image", "list").status == 0
    assert frontend.login.scope == {"image": "InstanceTwo"}


@pytest.mark.parametrize(
    ("scopes", "message"),
    [
        ({}, "clouds.yaml has none"),
        ({"other": {}, "third": {}}, "those in clouds.yaml are other, third"),
        ({"mixed": {"nonsense": "A"}}, "the scope mixed in clouds.yaml: unknown service type"),
        ({"mixed": {"image": 5}}, "the scope mixed in clouds.yaml: 5 is not an instance name"),
        ({"mixed": ["image"]}, "the scope mixed in clouds.yaml: "),
        (["mixed"], "clouds.yaml has none"),
    ],
)
def test_a_name_that_means_no_scope_is_an_error(
    openstack: Client, frontend: Frontend, scopes: object, message: str
) -> None:
    _name_scopes(openstack, scopes)
    result = openstack("image", "list", "--scope", "mixed")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert message in result.err
    assert frontend.requests == []


def _name_scopes(openstack: Client, scopes: object) -> None:
    path = openstack.directory / "clouds.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "scopes": scopes}))


def test_an_expression_becomes_a_login_for_each_plain_scope(
    openstack: Client, frontend: Frontend
) -> None:
    result = openstack("image", "list", "--scope", "image=InstanceTwo & InstanceOne", "-f", "json")
    assert (result.status, json.loads(result.out), result.err) == (0, [], "")
    logins = [r.scope for r in frontend.requests if r.path.endswith("/auth/tokens")]
    assert sorted(scope["image"] for scope in logins) == ["InstanceOne", "InstanceTwo"]


def test_the_proxy_names_the_instances_that_a_star_means(
    openstack: Client, frontend: Frontend
) -> None:
    result = openstack("image", "list", "--scope", "image=*", "-f", "json")
    assert (result.status, result.err) == (0, "")
    logins = [r.scope for r in frontend.requests if r.path.endswith("/auth/tokens") and r.scope]
    assert sorted(scope["image"] for scope in logins) == ["InstanceOne", "InstanceTwo"]


def test_an_expression_in_an_interactive_session_is_an_error(openstack: Client) -> None:
    result = openstack("--scope", "image=InstanceOne & InstanceTwo", stdin="image list\n")
    assert result.status == 2
    assert "needs a command" in result.err


def test_the_password_for_all_runs_is_asked_once(plain: Client, frontend: Frontend) -> None:
    del plain.variables["OS_PASSWORD"]
    line = "openstack image list --scope 'image=InstanceOne & InstanceTwo'; echo status $?"
    answer = _on_a_terminal(plain, line, {"Password:": "typed\n"})
    assert answer.count("Password:") == 1
    assert "status 0" in answer
    logins = [r for r in frontend.requests if r.path.endswith("/auth/tokens")]
    passwords = {login.body["auth"]["identity"]["password"]["user"]["password"] for login in logins}
    assert (passwords, len(logins)) == ({"typed"}, 2)


@pytest.mark.parametrize(("reply", "runs"), [("y", 2), ("", 0)])
def test_a_terminal_shows_the_runs_and_asks_on_request(
    openstack: Client, frontend: Frontend, reply: str, runs: int
) -> None:
    line = "openstack --scope-ask image list --scope 'image=InstanceOne & InstanceTwo'"
    answer = _on_a_terminal(openstack, line, {"[y/N]": f"{reply}\n"})
    assert "  InstanceOne\r\n  InstanceTwo\r\n" in answer
    assert len([r for r in frontend.requests if r.path.endswith("/auth/tokens")]) == runs


def _on_a_terminal(client: Client, line: str, replies: dict[str, str]) -> str:
    """The output of the shell command *line* on a terminal, where prompts get *replies*."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"HOME": str(client.directory), "PATH": path, **client.variables}
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(client.directory)
        os.execvpe("sh", ["sh", "-c", line], environment)
    shown = ""
    with contextlib.suppress(OSError):  # EIO: the command has ended.
        while text := os.read(terminal, 65536):
            shown += text.decode()
            for prompt, reply in replies.items():
                if prompt in text.decode():
                    os.write(terminal, reply.encode())
    os.close(terminal)
    os.waitpid(pid, 0)
    return shown


def test_an_instance_that_does_not_answer_in_time_is_named(
    openstack: Client, frontend: Frontend
) -> None:
    frontend.slow = "InstanceTwo"
    scope = "image=InstanceOne & InstanceTwo"
    result = openstack("--scope-timeout", "4", "image", "list", "--scope", scope, "-f", "json")
    assert result.status == 1
    (row,) = json.loads(result.out)
    assert (row["Instance"], row["Error"]) == ("InstanceTwo", "no answer within 4 seconds")


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "nan", "inf"])
def test_a_wrong_timeout_is_an_error(openstack: Client, seconds: str) -> None:
    result = openstack("image", "list", "--scope-timeout", seconds)
    assert result.status == 2
    assert "is not a number of seconds" in result.err


def test_ctrl_c_ends_all_runs_and_says_so(openstack: Client, frontend: Frontend) -> None:
    frontend.slow = "InstanceTwo"
    process = subprocess.Popen(
        [Path(sys.executable).with_name("openstack"), "image", "list", "-f", "json",
         "--scope", "image=InstanceOne & InstanceTwo"],
        cwd=openstack.directory,
        env={"HOME": str(openstack.directory), "LC_ALL": "C.UTF-8", **openstack.variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not any(r.scope.get("image") == "InstanceTwo" for r in frontend.requests):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert said == "InstanceTwo: interrupted\n"


def test_a_program_connects_with_a_scope(
    openstack: Client, frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", openstack.variables["OS_CLIENT_CONFIG_FILE"])
    _name_scopes(openstack, {"mixed": {"image": "InstanceTwo"}})
    for scope in ("mixed", {"glance": "InstanceTwo"}, "image=InstanceTwo"):
        frontend.requests.clear()
        connection = openstackoid.connect("InstanceOne", scope)
        assert list(connection.image.images()) == []
        assert frontend.login.scope == {"image": "InstanceTwo"}


def test_a_program_connects_as_the_user_of_the_scopes_identity(
    openstack: Client, frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", openstack.variables["OS_CLIENT_CONFIG_FILE"])
    connection = openstackoid.connect("InstanceOne", "identity=InstanceTwo")
    assert list(connection.image.images()) == []
    assert frontend.user["name"] == "admin-of-InstanceTwo"
    with pytest.raises(ScopeError, match="no cloud 'InstanceThree'"):
        openstackoid.connect("InstanceOne", "identity=InstanceThree")


def test_a_program_calls_everywhere(
    openstack: Client, frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", openstack.variables["OS_CLIENT_CONFIG_FILE"])
    with pytest.raises(ScopeError, match="everywhere"):
        openstackoid.connect("InstanceOne", "image=*")

    def images(connection: Connection) -> int:
        return len(list(connection.image.images()))

    outcomes = openstackoid.everywhere("InstanceOne", "image=* & Nowhere", images)
    assert [outcome.value for outcome in outcomes] == [0, 0, None]
    assert "Nowhere" in str(outcomes[2].error)
    assert dict(outcomes[2].scope) == {"image": "Nowhere"}
    first = openstackoid.everywhere("InstanceOne", "image=InstanceTwo | InstanceOne", images)
    assert [outcome.scope["image"] for outcome in first] == ["InstanceTwo"]
