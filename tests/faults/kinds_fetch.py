"""What the network may bring: hostile and damaged archives, servers with odd answers."""
import contextlib
import functools
import gzip
import json
import random
import socketserver
import stat
import tarfile
import threading
import tracemalloc
import zipfile
from unittest import mock

from kinds import kind, printable, refused, refused_or, works

from unified_onehead.core.files import file_sha256
from unified_onehead.core.testing import toy_tar, toy_zip, zip_folder
from unified_onehead.data.prepare import file_hashes, read_manifest
from unified_onehead.data.synthetic import FOLDERS, make_synthetic
from unified_onehead.fetch import archive as archives
from unified_onehead.fetch.archive import unpack
from unified_onehead.fetch.get import get_data, one_at_a_time
from unified_onehead.fetch.http import Net, SourceError, download, page_words, read_note
from unified_onehead.fetch.job import read_record, read_state

QUICK = Net(timeout=(30, 30), retries=1, backoff=0.01, longest_wait=0.05)
MODES = {"tar": "w", "tgz": "w:gz", "txz": "w:xz"}
CONTENT = [(f"d/{k}.bin", random.Random(k).randbytes(700)) for k in range(8)]


def nothing_left(call, tmp):
    "Whatever was refused has left no file of an archive."
    def attempt():
        call()
        left = [p for p in tmp.rglob("*") if "unpacked" in p.parts and p.is_file()]
        assert not left, f"{len(left)} files are left, {left[0]} among them"
    return attempt


def refuses(tmp, path, *contains):
    return nothing_left(refused(functools.partial(unpack, path, tmp / "unpacked" / "0"), path.name, *contains), tmp)


def named(path, kind_, name):
    "An archive with one member of this name."
    return toy_zip(path, {name: b"x"}) if kind_ == "zip" else toy_tar(path, MODES[kind_], (name, b"x"))


@kind("archives", "a header of a tar that says that it is huge", "refused before it is read, nothing is left")
def pax_bombs(tmp):
    for mode in ("tar", "tgz"):
        for type_ in (b"x", b"g", b"X", b"L", b"K"):
            for size in (2_000_000, 1_500_000_000, 8 << 30):
                path = tmp / f"{type_.decode()}{size}.{mode}"
                info = tarfile.TarInfo("name")
                info.type, info.size = type_, size
                raw = info.tobuf(tarfile.GNU_FORMAT) + b"0" * 1024
                with contextlib.ExitStack() as stack:
                    out = stack.enter_context(open(path, "wb"))
                    if mode == "tgz":
                        out = stack.enter_context(gzip.GzipFile(fileobj=out, mode="wb"))
                    out.write(raw)

                def attempt(path=path):
                    tracemalloc.start()
                    try:
                        refuses(tmp, path)()
                        assert tracemalloc.get_traced_memory()[1] < 20e6, "it took memory"
                    finally:
                        tracemalloc.stop()
                yield f"{mode}, {type_!r} of {size / 1e6:.0f} MB", attempt


@kind("archives", "a member that would be written elsewhere", "refused, nothing is left")
def escaping_members(tmp):
    for kind_ in ("zip", "tar", "tgz"):
        for number, name in enumerate(("../x", "/x", "a/../../x", "..\\x", "C:\\x", "C:/x", "\\\\host\\x", "a/..", "./../x",
                                       "a/c:/x")):
            yield f"{kind_}, {name}", refuses(tmp, named(tmp / f"{number}.{kind_}", kind_, name))


@kind("archives", "a member with a name that no disk takes", "refused, nothing is left")
def long_members(tmp):
    for kind_ in ("zip", "tar"):
        for number, name in enumerate(("a/" * 2000 + "b", "x" * 300, "é" * 130, "/".join(["a" * 200] * 30), "a/" * 101 + "b")):
            yield f"{kind_}, {name[:6]}.., {len(name)} letters", refuses(tmp, named(tmp / f"{number}.{kind_}", kind_, name))


@kind("archives", "a link, a pipe or a device as a member", "refused, nothing is left")
def special_members(tmp):
    for type_ in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
        for target in ("/etc/passwd", "../../x"):
            info = tarfile.TarInfo("l")
            info.type, info.linkname = type_, target
            path = toy_tar(tmp / f"{type_.decode()}.tar", "w", ("first", b"1"), info)
            yield f"tar, {type_!r} to {target}", refuses(tmp, path)
    for mode in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
        info = zipfile.ZipInfo("l")
        info.external_attr = (mode | 0o777) << 16
        with zipfile.ZipFile(tmp / "l.zip", "w") as file:
            file.writestr("first", b"1")
            file.writestr(info, b"/etc/passwd")
        yield f"zip, mode {mode:o}", refuses(tmp, tmp / "l.zip")


@kind("archives", "an archive of more files or bytes than any set has", "refused, nothing is left")
def large_archives(tmp):
    many = {f"d/{k}": b"1" for k in range(40)}
    large = {"big": bytes(300_000)}
    for kind_ in ("zip", "tar", "tgz"):
        for name, members in (("many", many), ("large", large), ("folders", {f"d{k}/": b"" for k in range(40)})):
            path = tmp / f"{name}.{kind_}"
            if kind_ == "zip":
                toy_zip(path, members)
            elif name == "folders":
                infos = [tarfile.TarInfo(f"d{k}") for k in range(40)]
                for info in infos:
                    info.type = tarfile.DIRTYPE
                toy_tar(path, MODES[kind_], *infos)
            else:
                toy_tar(path, MODES[kind_], *members.items())

            def attempt(path=path):
                with mock.patch.object(archives, "MAX_MEMBERS", 20), mock.patch.object(archives, "MAX_BYTES", 100_000):
                    refuses(tmp, path, "unpacks to over")()
            yield f"{kind_}, {name}", attempt


def whole(tmp, kind_):
    path = tmp / f"whole.{kind_}"
    return toy_zip(path, dict(CONTENT)) if kind_ == "zip" else toy_tar(path, MODES[kind_], *CONTENT)


@kind("archives", "an archive that was cut", "refused, nothing is left")
def cut_archives(tmp):
    for kind_ in ("zip", *MODES):
        path = whole(tmp, kind_)
        data = path.read_bytes()
        for share in (0, .001, .1, .3, .5):
            cut = tmp / f"{share}.{kind_}"
            cut.write_bytes(data[:int(share * len(data))])
            yield f"{kind_}, {share:.1%} of it", refuses(tmp, cut)


@kind("archives", "an archive with a changed byte", "refused, or every file is as it was")
def changed_archives(tmp):
    rng = random.Random(0)
    for kind_ in ("zip", "tgz", "txz"):
        path = whole(tmp, kind_)
        data = path.read_bytes()
        for number in range(25):
            bad, place = bytearray(data), rng.randrange(len(data))
            bad[place] ^= 1 << rng.randrange(8)
            changed = tmp / f"{number}.{kind_}"
            changed.write_bytes(bad)
            target = tmp / "out" / f"{kind_}{number}"

            def holds(folder):
                names = [p for p in folder.rglob("*") if p.is_file()]
                return sorted(p.read_bytes() for p in names) == sorted(content for _, content in CONTENT)
            yield f"{kind_}, byte {place}", refused_or(functools.partial(unpack, changed, target), holds)


@kind("archives", "a file that is no archive", "refused with what it is")
def no_archives(tmp):
    for number, raw in enumerate((b"", b"x", b"<!doctype html><title>Sign in\x1b[2J\n</title>", b"Rar!\x1a\x07",
                                  b"7z\xbc\xaf\x27\x1c", b"PK", b"PK\3\4",
                                  b"\x1f\x8b", b"\x1f\x8b\x08" + bytes(20), b"BZh9", b"\xfd7zXZ\0", bytes(512), bytes(10240),
                                  b"\x89PNG\r\n")):
        path = tmp / f"{number}.zip"
        path.write_bytes(raw)
        if raw and not raw.strip(b"\0"):
            yield f"{len(raw)} zeros, a tar of nothing", refused_or(functools.partial(unpack, path, tmp / "empty"),
                                                 lambda folder: not any(folder.iterdir()))
        else:
            yield f"{raw[:20]!r}", refuses(tmp, path)


@kind("archives", "a download that is no set", "refused with the reasons, and .work holds nothing unpacked")
def refused_downloads(tmp):
    small = toy_zip(tmp / "other.zip", {"a/b.txt": b"1"})
    for number, members in enumerate(({"a.txt": b"1"}, {"mini_coco_det/train/labels.json": b"[" * 100_000}, {"../x": b"1"},
                                      {"mini_voc_seg/train/JPEGImages/a.jpg": b""})):
        path = toy_zip(tmp / f"{number}.zip", members)

        def attempt(path=path, number=number):
            to = tmp / f"to{number}"
            refused(lambda: get_data(to, source="zip", urls=(str(small), str(path)), drive="", net=QUICK,
                                     say=lambda line: None), "zip:")()
            left = [p for p in to.rglob("*") if p.is_file() and {"unpacked", "gathered", "staged"} & {*p.relative_to(to).parts}]
            assert not left, left[:3]
        yield str(list(members)), attempt


class Raw(socketserver.StreamRequestHandler):
    "Answers with the bytes that the server holds, one entry per request, the last again and again."

    def handle(self):
        while self.rfile.readline().strip():
            pass
        answers = self.server.answers
        self.wfile.write(answers.pop(0) if len(answers) > 1 else answers[0])


@contextlib.contextmanager
def serving(*answers):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Raw) as server:
        server.daemon_threads, server.answers = True, list(answers)
        threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/a.zip"
        finally:
            server.shutdown()


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


def fetched(tmp, *answers):
    "What a download brings, with every line that it says held to be printable."
    lines = []
    net = Net(QUICK.timeout, QUICK.retries, QUICK.backoff, QUICK.longest_wait, 1, one_at_a_time(lines.append))
    path = tmp / f"{len(list(tmp.iterdir()))}.zip"
    with serving(*answers) as url:
        try:
            download(url, path, net=net)
        finally:
            assert all(map(printable, lines)), lines
    return path.read_bytes()


@kind("archives", "a set whose manifest.json vouches for nothing", "prepared anew, with a manifest that names every file")
def empty_manifests(tmp):
    kept = make_synthetic(tmp / "kept", n_train=4, n_val=3, side=32)
    some = next(p for p in sorted(kept.rglob("*.jpg")))
    one = {some.relative_to(kept).as_posix(): file_sha256(some)}
    for number, manifest in enumerate(({"files": {}}, {"files": one}, {"files": one, "classes": dict.fromkeys(FOLDERS, [])},
                                       {"files": one, "max_side": 0}, [1], {"files": one, "notes": 3})):
        def call(number=number, manifest=manifest):
            (kept / "manifest.json").write_text(json.dumps(manifest))
            path, to = zip_folder(kept, tmp / f"{number}.zip"), tmp / f"to{number}"
            get_data(to, source="zip", urls=(str(path),), drive="", net=QUICK, say=lambda line: None)
            return {*read_manifest(to)["files"]} == {*file_hashes(to)} and len(file_hashes(to)) > 20
        yield json.dumps(manifest)[:60], works(call, True)


@kind("servers", "an odd Retry-After", "tried again, and whole")
def retry_after(tmp):
    for value in ("0", "", "-1", "x", "1e400", "9" * 400, "1" * 5000, "²", "٣", "Wed, 21 Oct 2015 07:28:00 GMT", "0.5", "nan",
                  "1,2", " 1 ", "0x10"):
        answer = f"HTTP/1.1 503 Busy\r\nRetry-After: {value}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode("utf-8")
        yield f"{value[:30]!r}", works(functools.partial(fetched, tmp, answer, GOOD), b"hello")


@kind("servers", "an odd Content-Length", "whole, or refused with the address")
def content_length(tmp):
    for value in ("5", "x", "-5", "", "5,5", "1e3", "²", "٥", "0x5", "9" * 30, "5 5", "+5", "00005"):
        answer = f"HTTP/1.1 200 OK\r\nContent-Length: {value}\r\nConnection: close\r\n\r\nhello".encode("utf-8")
        yield f"{value[:30]!r}", refused_or(functools.partial(fetched, tmp, answer), lambda found: found == b"hello")


@kind("servers", "odd headers and status lines", "whole, or refused with the address")
def odd_headers(tmp):
    for line in ("Content-Range: bytes x-y/z", "ETag: \x1b[2J", "Location: file:///etc/passwd", "Content-Encoding: gzip",
                 "Content-Encoding: x",
                 "Content-Type: text/html", "Transfer-Encoding: chunked", "X: " + "y" * 70_000,
                 "\r\n".join(f"X-{k}: y" for k in range(150)),
                 "Last-Modified: é", "no colon", ": empty"):
        for status in ("200 OK", "206 Partial Content", "302 Found", "999 \x1b[31mOdd", "abc"):
            answer = f"HTTP/1.1 {status}\r\n{line}\r\nConnection: close\r\n\r\nhello".encode("utf-8")
            call = functools.partial(fetched, tmp, answer)
            yield f"{status!r}, {line[:30]!r}", refused_or(call, lambda found: found == b"hello")


@kind("servers", "a page in place of a file, whose title commands a terminal", "told in one printable line")
def odd_pages(tmp):
    for title in ("\x1b[2J", "a\nb", "\u202egpj", "x" * 5000, "<b>", "\x00"):
        body = f"<!doctype html><title>{title}</title>".encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n" + body
        yield f"{title[:20]!r}", refused(functools.partial(fetched, tmp, answer), "page", error=SourceError)
        yield f"{title[:20]!r}, in a file", works(lambda body=body: len(page_words(body)) < 300, True)


@kind("servers", "notes of an earlier call that are damaged", "count as damaged, the call goes on")
def odd_notes(tmp):
    for text in ("", "{", "[]", "3", "null", '{"hashes": 3}', '{"links": []}', '{"archives": "x", "state": 1}', "[" * 100_000,
                 '{"a":' * 100_000, "\x00", "\xff"):
        for name, reader, keys in ((".unified_onehead.json", read_state, ("hashes", "links")),
                                   ("archives.json", read_record, ("archives", "links"))):
            def call(text=text, name=name, reader=reader, keys=keys):
                (tmp / name).write_bytes(text.encode("latin-1"))
                found = reader(tmp)
                return isinstance(found, dict) and all(isinstance(found.get(key, {}), dict) for key in keys)
            yield f"{name}: {text[:20]!r}", works(call, True)
        (tmp / "note.json").write_bytes(text.encode("latin-1"))
        yield f"note: {text[:20]!r}", works(lambda: isinstance(read_note(tmp / "note.json"), (dict, type(None))), True)
