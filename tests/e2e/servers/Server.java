// A server of com.sun.net.httpserver, which comes with the JDK.

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.Executors;

class Server {
    private static int counter = 0;
    private static final List<Object> seen = new ArrayList<>();

    private static synchronized String count() throws IOException {
        counter++;
        seen.add(new Object());
        Path file = Path.of("/tmp/count");
        Files.writeString(file, "x", StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        return counter + " " + Files.size(file) + " " + seen.size();
    }

    private static String draw() {
        return new SecureRandom().nextLong() + " " + UUID.randomUUID();
    }

    private static void answer(HttpExchange exchange) throws IOException {
        String path = exchange.getRequestURI().getPath();
        String text = path.equals("/count") ? count() : path.equals("/draw") ? draw() : "ready";
        byte[] body = text.getBytes();
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }

    public static void main(String[] args) throws IOException {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 8000), 0);
        server.createContext("/", Server::answer);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
    }
}
