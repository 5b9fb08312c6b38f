/* Runs a program in this console and gives its status. While it runs, a file named "break" in the current folder is
 * Ctrl+Break, "ctrl-c" is Ctrl+C: a terminal of Unix has no key for the one. What Windows does when they are pressed is
 * done here: a thread begins in the program at kernel32's CtrlRoutine, which calls its handlers. (GenerateConsoleCtrlEvent
 * would ask for it, but Wine 8 refuses Ctrl+Break.) The file is deleted then. Built by tests/wine.rs:
 * x86_64-w64-mingw32-gcc -o console.exe console.c
 * console.exe PROGRAM ARGUMENT... (none of them with spaces) */
#include <windows.h>
#include <string.h>

/* What is pressed is for the program. */
static BOOL WINAPI not_me(DWORD event)
{
    return event == CTRL_BREAK_EVENT || event == CTRL_C_EVENT;
}

static void press(HANDLE program, const char *file, DWORD event)
{
    /* System libraries have one address in all processes. */
    FARPROC routine = GetProcAddress(GetModuleHandleA("kernel32.dll"), "CtrlRoutine");
    HANDLE thread;
    if (!routine || GetFileAttributesA(file) == INVALID_FILE_ATTRIBUTES || !DeleteFileA(file))
        return;
    thread = CreateRemoteThread(program, NULL, 0, (LPTHREAD_START_ROUTINE)routine, (void *)(DWORD_PTR)event, 0, NULL);
    if (thread)
        CloseHandle(thread);
}

int main(int count, char **arguments)
{
    char line[4096] = "";
    STARTUPINFOA start = {sizeof start};
    PROCESS_INFORMATION program;
    DWORD status = 1;
    for (int i = 1; i < count; i++) {
        if (strlen(line) + strlen(arguments[i]) + 2 > sizeof line)
            return 2;
        strcat(strcat(line, arguments[i]), " ");
    }
    SetConsoleCtrlHandler(not_me, TRUE);
    if (!CreateProcessA(NULL, line, NULL, NULL, TRUE, 0, NULL, NULL, &start, &program))
        return 3;
    while (WaitForSingleObject(program.hProcess, 50) == WAIT_TIMEOUT) {
        press(program.hProcess, "break", CTRL_BREAK_EVENT);
        press(program.hProcess, "ctrl-c", CTRL_C_EVENT);
    }
    GetExitCodeProcess(program.hProcess, &status);
    return (int)status;
}
