/* SPDX-License-Identifier: MIT */
/*
 * The program lofi: what one does with checkpoints without Python. It uses nothing of liblofi but
 * lofi.h, so that whatever it can do, any program can.
 */
#define _GNU_SOURCE
#include "cli/cli.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const char help[] =
    "usage: lofi COMMAND ...\n"
    "\n"
    "  average   write the average of checkpoints (safetensors files or Hugging Face folders)\n"
    "  soup      write the average that scores best: a greedy soup, or a sweep of alpha\n"
    "  info      show what is in a checkpoint\n"
    "  diff      show how far checkpoints are apart\n"
    "\n"
    "  lofi COMMAND --help    what it takes, with examples\n"
    "  lofi --version\n"
    "\n"
    "Exit code: 0 done, 1 failed (a sentence on stderr says why), 2 wrong arguments, 3 an average\n"
    "was written, and has numbers that are not finite or did not fit.\n";

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"average", cli_average}, {"soup", cli_soup}, {"info", cli_info}, {"diff", cli_diff}};

/* Checkpoints in many shards need many files at once. */
static void allow_many_files(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* A file that is opened while one of these is closed gets its number, and a message would go into
 * it. Writing to what is opened here fails as before. */
static int open_standard_files(void)
{
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDONLY) != fd) return 0;
    return 1;
}

/* A full disk shows when what was printed is written. */
static int finish(int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    fputs("lofi: the output can't be written\n", stderr);
    return code == CLI_DONE ? CLI_FAILED : code;
}

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";

    if (!open_standard_files()) return CLI_FAILED;
    if (argc < 2) {
        fputs(help, stderr);
        return CLI_MISUSED;
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        fputs(help, stdout);
        return finish(CLI_DONE);
    }
    if (strcmp(word, "--version") == 0) {
        printf("lofi %s\n", lofi_build_info());
        return finish(CLI_DONE);
    }
    allow_many_files();
    signal(SIGXFSZ, SIG_IGN); /* then a file that may not grow is an error like any other */
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(word, commands[i].name) == 0) return finish(commands[i].run(argc - 1, argv + 1));
    return cli_misuse("", "'%s' is no command: choose average, soup, info or diff", word);
}
