"""A W&B server on loopback, as far as W&B's own client needs one for runs and artifacts.

GraphQL operations are answered by their name, with the fields that the client of version 0.31 asks for; `unknown` lists
those that it asked for in vain. Nothing here knows the project that is tested.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Json = dict[str, Any]
TIME = "2026-01-01T00:00:00Z"


@dataclass
class Version:
    """A version of an artifact."""

    id: str
    type: str
    collection: str
    index: int
    digest: str
    metadata: str
    run: str
    aliases: list[str] = field(default_factory=list)
    committed: bool = False


@dataclass
class Server:
    """One user, "me". What arrived: rows by run, artifacts, inputs as (run, artifact), files by address."""

    url: str = ""
    rows: dict[str, list[Json]] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)
    artifacts: list[Version] = field(default_factory=list)
    inputs: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)  # operations that fail
    sweep: Json = field(default_factory=dict)  # the configuration of the only sweep
    trials: list[Json] = field(default_factory=list)  # that its agent is still to start
    swept: dict[str, str] = field(default_factory=dict)  # run -> its sweep
    asked: list[str] = field(default_factory=list)  # operations, in order
    unknown: list[str] = field(default_factory=list)

    def changes(self) -> list[str]:
        """The operations so far that changed something."""
        return [name for name in self.asked if name in ("UpsertBucket", "CreateArtifact", "UseArtifact", "file_stream")]

    # -- who and what -----------------------------------------------------------------------------------------------

    def Viewer(self, **_: Any) -> Json:
        who = {"id": "u", "entity": "me", "username": "me", "name": "me", "email": "", "flags": "{}", "admin": False}
        return {"viewer": who | {"teams": {"edges": []}}}

    def GetDefaultEntity(self, **_: Any) -> Json:
        return self.Viewer()

    def ServerFeaturesQuery(self, **_: Any) -> Json:
        return {"serverInfo": {"features": []}}

    # -- runs -------------------------------------------------------------------------------------------------------

    def RunResumeStatus(self, name: str, project: str, **_: Any) -> Json:
        bucket = None
        if name in self.rows:
            rows = self.rows[name]
            tail = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]"}
            counts = {"logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0}
            texts = {"summaryMetrics": "{}", "config": "{}", "wandbConfig": '{"t": 1}', "displayName": "", "notes": ""}
            bucket = {"id": name, "name": name, "tags": [], **tail, **counts, **texts}
        return {"model": {"id": project, "name": project, "entity": {"id": "me", "name": "me"}, "bucket": bucket}}

    def UpsertBucket(self, name: str, project: str | None = None, sweep: str | None = None, **_: Any) -> Json:
        new = name not in self.rows
        if sweep:
            self.swept[name] = sweep
        rows = self.rows.setdefault(name, [])
        texts = {"displayName": "", "description": "", "config": "{}", "sweepName": ""}
        bucket = {"id": name, "name": name, "project": self._project(project), "historyLineCount": len(rows), **texts}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def file_stream(self, run: str, sent: Json) -> Json:
        """Not GraphQL: rows, and in the end the exit code."""
        for line in sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
            self.rows[run].append(json.loads(line))
        if sent.get("complete"):
            self.exits[run] = sent["exitcode"]
        return {}

    def CreateRunFiles(self, run: str, files: list[str], **_: Any) -> Json:
        places = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": places}}

    def Run(self, name: str, **_: Any) -> Json:
        if name not in self.rows:
            return {"project": {"run": None}}
        texts = dict.fromkeys(("displayName", "group", "jobType", "description", "notes"), "")
        jsons = dict.fromkeys(("config", "systemMetrics", "summaryMetrics"), "{}")
        facts = {"id": name, "name": name, "projectId": "1", "tags": [], "state": "finished", "readOnly": False}
        facts |= {"sweepName": None, "commit": None, "historyKeys": None, "createdAt": TIME, "heartbeatAt": TIME}
        return {"project": {"run": facts | texts | jsons | {"historyLineCount": 0, "user": {"username": "me"}}}}

    # -- sweeps -----------------------------------------------------------------------------------------------------

    def SweepWithRuns(self, sweep: str, **_: Any) -> Json:
        facts = {"id": sweep, "name": sweep, "method": "grid", "state": "RUNNING", "config": json.dumps(self.sweep)}
        return {"project": {"sweep": facts | {"runs": {"edges": []}}}}

    def CreateAgent(self, **_: Any) -> Json:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def Heartbeat(self, runState: str, **_: Any) -> Json:
        commands = [] if json.loads(runState) else [self.trials.pop(0) if self.trials else {"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}

    # -- artifacts --------------------------------------------------------------------------------------------------

    def CreateArtifact(self, input: Json) -> Json:
        name = input["artifactCollectionName"]
        versions = [version for version in self.artifacts if version.collection == name]
        found = next((version for version in versions if version.digest == input["digest"]), None)
        if found is None:
            id, facts = f"artifact-{len(self.artifacts)}", (input["digest"], input["metadata"], input["runName"])
            found = Version(id, input["artifactTypeName"], name, len(versions), *facts)
            self.artifacts.append(found)
        for alias in [alias["alias"] for alias in input["aliases"]]:
            for version in versions:
                version.aliases = [other for other in version.aliases if other != alias]
            found.aliases.append(alias)
        state = "COMMITTED" if found.committed else "PENDING"
        return {"createArtifact": {"artifact": {"id": found.id, "state": state, "artifactSequence": {"id": name}}}}

    def CreateArtifactManifest(self, artifactID: str, **_: Any) -> Json:
        file = {"id": "f", "uploadUrl": f"{self.url}/manifest/{artifactID}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{artifactID}", "file": file}}}

    def CreateArtifactFiles(self, input: Json) -> Json:
        nodes = []
        for file in input["artifactFiles"]:
            place = f"{self.url}/artifact/{file['artifactID']}/{file['name']}"
            node = {"id": "f", "name": file["name"], "uploadUrl": place, "uploadHeaders": [], "storagePath": "p"}
            nodes.append({"node": node | {"displayName": file["name"], "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def CommitArtifact(self, artifactID: str, **_: Any) -> Json:
        self._version(artifactID).committed = True
        return {"commitArtifact": {"artifact": {"id": artifactID, "digest": ""}}}

    def UseArtifact(self, runName: str, artifactID: str, **_: Any) -> Json:
        self.inputs.append((runName, artifactID))
        return {"useArtifact": {"artifact": {"id": artifactID, "state": "COMMITTED", "createdAt": TIME}}}

    def ArtifactByID(self, id: str, **_: Any) -> Json:
        return {"artifact": self._node(self._version(id))}

    def ArtifactType(self, name: str, **_: Any) -> Json:
        found = self._named(name)
        return {"project": {"artifact": found and {"artifactType": {"name": found.type}}}}

    def ArtifactMembershipByName(self, name: str, **_: Any) -> Json:
        member, found = None, self._named(name)
        if found:
            node = self._node(found)
            member = {"__typename": "ArtifactCollectionMembership", "id": "m", "versionIndex": found.index}
            member |= {"createdAt": TIME, "aliases": node["aliases"], "artifactCollection": node["artifactSequence"]}
            member |= {"artifact": node}
        return {"project": {"artifactCollectionMembership": member}}

    def RunOutputArtifacts(self, run: str, **_: Any) -> Json:
        return self._page([version for version in self.artifacts if version.run == run and version.committed])

    def RunInputArtifacts(self, run: str, **_: Any) -> Json:
        return self._page([self._version(id) for by, id in self.inputs if by == run])

    # -- how --------------------------------------------------------------------------------------------------------

    def _version(self, id: str) -> Version:
        return next(version for version in self.artifacts if version.id == id)

    def _named(self, name: str) -> Version | None:
        collection, _, alias = name.partition(":")
        named = [version for version in self.artifacts if version.collection == collection and alias in version.aliases]
        return named[0] if named else None

    @staticmethod
    def _project(name: str | None = "lottery") -> Json:
        return {
            "__typename": "Project",
            "id": "p",
            "internalId": "p",
            "name": name,
            "entity": {"id": "e", "name": "me"},
        }

    def _node(self, version: Version) -> Json:
        collection = {"__typename": "ArtifactSequence", "name": version.collection, "project": self._project()}
        alias = {"__typename": "ArtifactAlias", "artifactCollection": collection}
        aliases = [{"id": name, "alias": name, **alias} for name in version.aliases]
        node = {"__typename": "Artifact", "id": version.id, "artifactSequence": collection, "aliases": aliases}
        node |= {"versionIndex": version.index, "artifactType": {"name": version.type}, "metadata": version.metadata}
        node |= {"ttlDurationSeconds": -1, "ttlIsInherited": False, "tags": [], "state": "COMMITTED", "size": 0}
        node |= {"digest": version.digest, "fileCount": 1, "createdAt": TIME, "commitHash": ""}
        return node | dict.fromkeys(("description", "historyStep", "updatedAt"))

    def _page(self, versions: list[Version]) -> Json:
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        edges = [{"node": self._node(version)} for version in versions]
        return {"project": {"run": {"artifacts": {"totalCount": len(edges), "pageInfo": page, "edges": edges}}}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_POST(self) -> None:
        sent = json.loads(self.body())
        if self.path != "/graphql":
            self.state.asked.append("file_stream")
            return self.reply(self.state.file_stream(self.path.split("/")[-2], sent))
        named = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
        assert named
        name, answer = named[1], getattr(self.state, named[1], None)
        self.state.asked.append(name)
        if answer is None:
            self.state.unknown.append(name)
        if answer is None or name in self.state.refused:
            return self.reply({"data": None, "errors": [{"message": f"{name}: refused"}]})
        return self.reply({"data": answer(**(sent.get("variables") or {}))})

    def do_PUT(self) -> None:
        self.state.files[self.path] = self.body()
        self.reply({})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def reply(self, answer: Json) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that was done with its connection reset it."""


@contextmanager
def serving() -> Iterator[Server]:
    """A server that listens while the context lasts."""
    state = Server()
    http = _Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{http.server_port}"
    Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
