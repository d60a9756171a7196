"""A gRPC server and a gRPC client by Google's own library, without generated code: messages are bytes.

server [PORT [CERTIFICATE KEY]]: prints its port and serves until its standard input ends; with TLS, if it has
files for that.
client ADDRESS [CA]: makes calls of every shape and says what went wrong, if anything did. With a file
of authorities over TLS, to web.test.
"""

import sys
import threading
from concurrent import futures

import grpc

SERVICE = "tidegate.Test"


def echo(request, context):
    metadata = dict(context.invocation_metadata())
    context.set_trailing_metadata((("x-trailer", "t"),))
    if "x-fail" in metadata:
        context.abort(grpc.StatusCode[metadata["x-fail"]], "as asked")
    if request == b"deadline":
        return str(context.time_remaining()).encode()
    if request == b"hang":
        context_ended = threading.Event()
        context.add_callback(context_ended.set)
        context_ended.wait(30)
    return request


def count(request, context):
    for i in range(int(request)):
        yield str(i).encode()
    if "x-fail" in dict(context.invocation_metadata()):
        context.abort(grpc.StatusCode.INTERNAL, "after all")


def join(requests, context):
    return b"".join(requests)


def chat(requests, context):
    for request in requests:
        yield b"re: " + request


def serve(port="0", *files):
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Join": grpc.stream_unary_rpc_method_handler(join),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    address = f"127.0.0.1:{port}"
    if files:
        certificate, key = (open(file, "rb").read() for file in files)
        credentials = grpc.ssl_server_credentials([(key, certificate)])
        port = server.add_secure_port(address, credentials)
    else:
        port = server.add_insecure_port(address)
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(0)


def equal(got, expected):
    if got != expected:
        sys.exit(f"got {got!r}, not {expected!r}")


def fails(codes, call):
    try:
        call()
    except grpc.RpcError as error:
        if error.code() not in codes or not error.details():
            sys.exit(f"got {error.code()} {error.details()!r}, not {codes}")
        return dict(error.trailing_metadata() or ())
    sys.exit(f"not {codes}: it succeeded")


def path(method):
    return f"/{SERVICE}/{method}"


def connect(address, authorities=None):
    if authorities is None:
        return grpc.insecure_channel(address)
    with open(authorities, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    return grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", "web.test")])


def client(address, *authorities):
    with connect(address, *authorities) as channel:
        echo = channel.unary_unary(path("Echo"))
        count = channel.unary_stream(path("Count"))
        join = channel.stream_unary(path("Join"))
        chat = channel.stream_stream(path("Chat"))

        response, call = echo.with_call(b"hello", timeout=10)
        equal(response, b"hello")
        # tonic has no way to put what it adds to a success behind it.
        equal(dict([*call.initial_metadata(), *call.trailing_metadata()])["x-trailer"], "t")
        equal(echo(b"", timeout=10), b"")
        large = bytes(range(256)) * 8192
        equal(echo(large, timeout=10), large)

        equal(list(count(b"100", timeout=10)), [str(i).encode() for i in range(100)])
        equal(join(iter([b"a", b"b", b"c"]), timeout=10), b"abc")

        # One answer is awaited before the next question is asked.
        questions = []
        asked = threading.Condition()

        def ask():
            for i in range(10):
                with asked:
                    asked.wait_for(lambda: len(questions) == i, 10)
                yield str(i).encode()

        for answer in chat(ask(), timeout=20):
            with asked:
                questions.append(answer)
                asked.notify()
        equal(questions, [f"re: {i}".encode() for i in range(10)])

        for code in ("NOT_FOUND", "UNAVAILABLE"):
            call = lambda: echo(b"", metadata=(("x-fail", code),), timeout=10)
            equal(fails([grpc.StatusCode[code]], call)["x-trailer"], "t")
        fails([grpc.StatusCode.INTERNAL], lambda: list(count(b"3", metadata=(("x-fail", "1"),), timeout=10)))
        fails([grpc.StatusCode.UNIMPLEMENTED], lambda: channel.unary_unary(path("Gone"))(b"", timeout=10))

        left = float(echo(b"deadline", timeout=20))
        if not 10 < left < 21:
            sys.exit(f"{left} s are left of 20")
        # tonic says CANCELLED, if it notices first.
        late = [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED]
        fails(late, lambda: echo(b"hang", timeout=0.3))
    print("fine", flush=True)


def failing(address, code):
    """What a client makes of the proxy's own replies."""
    with connect(address) as channel:
        fails([grpc.StatusCode[code]], lambda: channel.unary_unary(path("Echo"))(b"", timeout=10))
    print("fine", flush=True)


if __name__ == "__main__":
    {"server": serve, "client": client, "failing": failing}[sys.argv[1]](*sys.argv[2:])
