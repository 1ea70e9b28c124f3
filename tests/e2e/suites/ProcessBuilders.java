// Java's ProcessBuilder: pipes, redirections, environment, pipelines, handles, ends.
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;

public class ProcessBuilders {
    static String text(Process process) throws IOException {
        return new String(process.getInputStream().readAllBytes());
    }

    public static void main(String[] arguments) throws Exception {
        Process cat = new ProcessBuilder("cat").start();
        byte[] much = "x".repeat(1 << 20).getBytes();
        Thread writer = new Thread(() -> {
            try (var out = cat.getOutputStream()) {
                out.write(much);
            } catch (IOException error) {
                System.out.println(error);
            }
        });
        writer.start();
        System.out.println("cat " + text(cat).length() + " " + cat.waitFor());

        var shell = new ProcessBuilder("sh", "-c", "echo out; echo err >&2; echo $WORD; pwd; exit 7");
        shell.environment().clear();
        shell.environment().put("WORD", "word");
        shell.directory(new File("/tmp")).redirectErrorStream(true);
        Process sh = shell.start();
        System.out.println("sh " + text(sh) + sh.waitFor());

        Path in = Files.writeString(Files.createTempFile("in", ""), "c\nb\na\n");
        Path out = Files.createTempFile("out", "");
        Process sort = new ProcessBuilder("sort")
                .redirectInput(in.toFile())
                .redirectOutput(ProcessBuilder.Redirect.appendTo(out.toFile()))
                .start();
        System.out.println("sort " + sort.waitFor() + " " + Files.readAllLines(out));
        System.out.flush();
        System.out.println("inherit " + new ProcessBuilder("echo", "inherited").inheritIO().start().waitFor());

        List<Process> pipeline = ProcessBuilder.startPipeline(List.of(
                new ProcessBuilder("seq", "1000"),
                new ProcessBuilder("grep", "7"),
                new ProcessBuilder("wc", "-l")));
        System.out.println("pipeline " + text(pipeline.get(2)).trim());
        for (Process part : pipeline) System.out.println("part " + part.waitFor());

        for (String name : List.of("no-such-program", "/etc/passwd", "/")) {
            try {
                new ProcessBuilder(name).start();
                System.out.println("started " + name);
            } catch (IOException error) {
                System.out.println(error.getMessage());
            }
        }

        Process sleeper = new ProcessBuilder("sleep", "100").start();
        System.out.println("in time " + sleeper.waitFor(100, TimeUnit.MILLISECONDS) + " " + sleeper.isAlive());
        ProcessHandle handle = sleeper.toHandle();
        System.out.println("child " + ProcessHandle.current().children().anyMatch(handle::equals)
                + " " + handle.parent().equals(java.util.Optional.of(ProcessHandle.current()))
                + " " + handle.info().command().orElse("?")
                + " " + String.join(",", handle.info().arguments().orElse(new String[0])));
        var onExit = handle.onExit();
        sleeper.destroy();
        System.out.println("destroyed " + sleeper.waitFor() + " " + onExit.get().isAlive());
        Process forced = new ProcessBuilder("sh", "-c", "trap '' TERM; echo ready; sleep 100").start();
        forced.inputReader().readLine();
        forced.descendants().forEach(ProcessHandle::destroy);
        forced.destroyForcibly();
        System.out.println("forced " + forced.waitFor());

        var many = new ArrayList<Process>();
        for (int number = 0; number < 30; number++) {
            many.add(new ProcessBuilder("sh", "-c", "echo " + number + "; exit " + number).start());
        }
        var said = new StringBuilder();
        for (Process one : many) said.append(text(one).trim()).append('=').append(one.waitFor()).append(' ');
        System.out.println("many " + said);
    }
}
