/* A named pipe in front of a TCP port: what a hypervisor on Windows offers as a serial port. Built by tests/wine.rs:
 * x86_64-w64-mingw32-gcc -o pipe.exe pipe.c -lws2_32
 * pipe.exe \\.\pipe\NAME PORT serves one client, and ends with it. */
#include <winsock2.h>
#include <windows.h>
#include <stdio.h>
#include <stdlib.h>

static HANDLE pipe_end;
static SOCKET line;

/* Overlapped, since a read that waits would else hold up the writes. */
static DWORD move(BOOL write, char *buffer, DWORD length)
{
    OVERLAPPED wait = {0};
    DWORD moved = 0;
    wait.hEvent = CreateEvent(NULL, TRUE, FALSE, NULL);
    BOOL done = write ? WriteFile(pipe_end, buffer, length, NULL, &wait) : ReadFile(pipe_end, buffer, length, NULL, &wait);
    if (!done && GetLastError() != ERROR_IO_PENDING)
        moved = 0;
    else if (!GetOverlappedResult(pipe_end, &wait, &moved, TRUE))
        moved = 0;
    CloseHandle(wait.hEvent);
    return moved;
}

static DWORD WINAPI from_line(void *unused)
{
    char buffer[4096];
    int length;
    (void)unused;
    while ((length = recv(line, buffer, sizeof buffer, 0)) > 0)
        if (move(TRUE, buffer, length) == 0)
            break;
    ExitProcess(0);
}

int main(int count, char **arguments)
{
    WSADATA data;
    struct sockaddr_in address = {0};
    char buffer[4096];
    DWORD length;
    BOOL on = TRUE;
    OVERLAPPED wait = {0};
    if (count != 3 || WSAStartup(MAKEWORD(2, 2), &data))
        return 2;
    pipe_end = CreateNamedPipeA(arguments[1], PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED, PIPE_TYPE_BYTE, 1, 4096, 4096, 0, NULL);
    if (pipe_end == INVALID_HANDLE_VALUE)
        return 3;
    line = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_family = AF_INET;
    address.sin_port = htons((u_short)atoi(arguments[2]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(line, (struct sockaddr *)&address, sizeof address))
        return 4;
    setsockopt(line, IPPROTO_TCP, TCP_NODELAY, (char *)&on, sizeof on);
    puts("ready");
    fflush(stdout);
    wait.hEvent = CreateEvent(NULL, TRUE, FALSE, NULL);
    if (!ConnectNamedPipe(pipe_end, &wait) && GetLastError() == ERROR_IO_PENDING)
        WaitForSingleObject(wait.hEvent, INFINITE);
    CreateThread(NULL, 0, from_line, NULL, 0, NULL);
    while ((length = move(FALSE, buffer, sizeof buffer)) > 0)
        if (send(line, buffer, (int)length, 0) <= 0)
            break;
    return 0;
}
