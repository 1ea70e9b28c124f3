import com.sun.net.httpserver.HttpServer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/** A server of HTTP and its client, in one process. */
public class Http {
    public static void main(String[] words) throws Exception {
        var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 16);
        server.createContext("/", exchange -> {
            byte[] answer = ("you asked for " + exchange.getRequestURI()).getBytes();
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
        var client = HttpClient.newHttpClient();
        String base = "http://127.0.0.1:" + server.getAddress().getPort() + "/";
        List<CompletableFuture<String>> asked = IntStream.range(0, 16)
                .mapToObj(n -> HttpRequest.newBuilder(URI.create(base + n)).build())
                .map(request -> client.sendAsync(request, BodyHandlers.ofString()).thenApply(answer -> answer.body()))
                .collect(Collectors.toList());
        for (var answer : asked) System.out.println(answer.get());
        System.out.println(InetAddress.getByName("localhost").isLoopbackAddress());
        server.stop(0);
        System.exit(0);
    }
}
