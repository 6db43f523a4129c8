/* SPDX-License-Identifier: MIT */
/*
 * The command and its output, as text.
 *
 * The path reaches the shell as its first argument and never as text of the command: then no
 * character of it can be read as anything else. But "${1}" is only expanded, and only kept in one
 * piece, with the right quotes around it, so the quotes of the command are followed.
 */
#define _GNU_SOURCE
#include "cli/score.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NESTED_MOST = 64 };

/* Where the shell is in a command: what is open, a quote or a parenthesis, the innermost last. */
struct place {
    char open[NESTED_MOST];
    int depth;
};

static char innermost(const struct place *p)
{
    return p->depth > 0 ? p->open[p->depth - 1] : '(';
}

static void open_one(struct place *p, char mark)
{
    if (p->depth < NESTED_MOST) p->open[p->depth++] = mark;
}

/* Closes what `mark` has opened, or opens it. */
static void turn(struct place *p, char mark)
{
    if (p->depth > 0 && innermost(p) == mark)
        p->depth--;
    else
        open_one(p, mark);
}

/* Follows one character, or two that belong together. Returns how many. */
static size_t follow(struct place *p, const char *c)
{
    const char in = innermost(p);

    if (in != '\'' && c[0] == '\\' && c[1] != '\0') return 2;
    if (in != '\'' && c[0] == '$' && c[1] == '(') {
        open_one(p, '(');
        return 2;
    }
    if ((*c == '"' && in != '\'') || (*c == '\'' && in != '"'))
        turn(p, *c);
    else if (*c == '(' && in == '(')
        open_one(p, '(');
    else if (*c == ')' && in == '(' && p->depth > 0)
        p->depth--;
    return 1;
}

static const char *argument_in(const struct place *p)
{
    switch (innermost(p)) {
    case '\'':
        return "'\"${1}\"'";
    case '"':
        return "${1}";
    default:
        return "\"${1}\"";
    }
}

char *cli_score_command(const char *text)
{
    struct place place = {.depth = 0};
    char *command = NULL;
    size_t bytes;
    int count = 0;
    FILE *to = open_memstream(&command, &bytes);

    if (to == NULL) return NULL;
    while (*text != '\0') {
        const int is_path = text[0] == '{' && text[1] == '}';
        const size_t length = is_path ? 2 : follow(&place, text);
        if (is_path)
            fputs(argument_in(&place), to);
        else
            fwrite(text, 1, length, to);
        count += is_path;
        text += length;
    }
    if (fclose(to) == 0 && count > 0) return command;
    free(command);
    errno = 0;
    return NULL;
}

static int is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Whether all from `word` to `end`, which ends the text, is a number. */
static int is_number(const char *word, const char *end, double *value)
{
    char *found;

    *value = strtod(word, &found);
    return found != word && found == end;
}

const char *cli_score_parse(char *text, double *score)
{
    char *end = text + strlen(text);

    while (end > text && is_blank(end[-1]))
        *--end = '\0';
    const char *line = strrchr(text, '\n');
    line = line != NULL ? line + 1 : text;
    const int has_percent = end > line && end[-1] == '%';
    char *word = end -= has_percent;
    *end = '\0';
    while (word > line && !is_blank(word[-1]) && word[-1] != '=')
        word--;
    if (is_number(word, end, score)) return NULL;
    if (has_percent) *end = '%';
    return line;
}
